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


def ratio_to(baseline: Result, result: Result, reference: Result | None = None) -> Ratio | str:
    """Round by round, `result` divided by `baseline`; or why the two are not compared.

    reference: a third case whose losses `result` must have too, where the baseline's own part from all others.
    """
    if baseline.failure or result.failure:
        return "one of them failed"
    pairs = list(zip(baseline.measurements, result.measurements, strict=False))
    if not pairs:
        return "one of them did not run"
    for other in (baseline, reference):
        difference = None if other is None else loss_difference(other, result)
        if difference is not None:
            return difference
    return Ratio(
        tokens_per_second=Spread.of(
            [ours.tokens_per_second / theirs.tokens_per_second for theirs, ours in pairs]
        ),
        cpu_seconds_per_token=Spread.of(
            [ours.cpu_seconds_per_token / theirs.cpu_seconds_per_token for theirs, ours in pairs]
        ),
        peak_memory=_memory_ratio(pairs),
    )


def _memory_ratio(pairs: Sequence[tuple[Measurement, Measurement]]) -> float | None:
    """None where one round was not measured."""
    ratios = [
        ours.peak_memory_bytes / theirs.peak_memory_bytes
        for theirs, ours in pairs
        if ours.peak_memory_bytes is not None and theirs.peak_memory_bytes is not None
    ]
    return median(ratios) if len(ratios) == len(pairs) else None


def loosely_held(baseline: Result, result: Result, reference: Result | None, name: str) -> str | None:
    """What the losses of `result` are held to in rounds where the case `name`, the reference, has none.

    None where it has all of them. The baseline alone may promise its first step and no more.
    """
    num_rounds = len(result.measurements)
    num_held = 0 if reference is None else min(num_rounds, len(reference.measurements))
    promises = {baseline.case.same_loss, result.case.same_loss}
    if "none" in promises or num_held == num_rounds:
        return None
    steps = "first step" if "first" in promises else "steps"
    return (
        f"losses held to the {steps} of {baseline.case.name} alone in {num_rounds - num_held} of {num_rounds} rounds: "
        f"{name} was not run there"
    )


def loss_difference(other: Result, result: Result) -> str | None:
    """Where two programs did not do the same work: the first step whose losses differ, in words.

    Of the steps that both promise: a case whose processes do not communicate has the others' loss only before its
    first update.
    """
    promises = {other.case.same_loss, result.case.same_loss}
    if "none" in promises:
        return None
    assert result.work is not None
    last = 1 if "first" in promises else None
    for theirs, ours in zip(other.measurements, result.measurements, strict=False):
        found = first_difference(theirs.losses[:last], ours.losses[:last], result.work.precision)
        if found is not None:
            step, a, b = found
            return f"not compared: the loss of step {step} is {b} beside {a} of {other.case.name}"
    return None
