"""Figures of one case beside another's: ratios with their spread, and what may not be compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from megatune.bench.measure import Measurement
from megatune.bench.rounds import Result
from megatune.report.losses import first_difference


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median=median(values), low=min(values), high=max(values))

    def __str__(self) -> str:
        return f"{_three_digits(self.median)} [{_three_digits(self.low)} .. {_three_digits(self.high)}]"


def _three_digits(value: float) -> str:
    """Three significant digits or all before the point, never an exponent for what people read as a number."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How a case stands to its baseline; above 1 is more of the thing."""

    tokens_per_second: Spread
    cpu_seconds_per_token: Spread
    peak_memory: float | None


def ratio_to(baseline: Result, result: Result) -> Ratio | str:
    """Round by round, `result` divided by `baseline`; or why the two are not compared."""
    if baseline.failure or result.failure:
        return "one of them failed"
    pairs = list(zip(baseline.measurements, result.measurements, strict=False))
    if not pairs:
        return "one of them did not run"
    for theirs, ours in pairs:
        difference = loss_difference(result, theirs, ours)
        if difference is not None:
            return difference
    memory = [m.peak_memory_bytes for pair in pairs for m in pair]
    return Ratio(
        tokens_per_second=Spread.of(
            [ours.tokens_per_second / theirs.tokens_per_second for theirs, ours in pairs]
        ),
        cpu_seconds_per_token=Spread.of(
            [ours.cpu_seconds_per_token / theirs.cpu_seconds_per_token for theirs, ours in pairs]
        ),
        peak_memory=None
        if None in memory
        else median(ours.peak_memory_bytes / theirs.peak_memory_bytes for theirs, ours in pairs),  # type: ignore[operator]
    )


def loss_difference(result: Result, theirs: Measurement, ours: Measurement) -> str | None:
    """Where two programs did not do the same work: the first step whose losses differ, in words."""
    if result.case.same_loss == "none":
        return None
    assert result.work is not None
    last = 1 if result.case.same_loss == "first" else None
    found = first_difference(theirs.losses[:last], ours.losses[:last], result.work.precision)
    if found is None:
        return None
    step, a, b = found
    return f"not compared: the loss of step {step} is {b} beside {a}"
