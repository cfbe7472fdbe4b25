"""Constants of the time model fitted to runs of one place: `megatune plan --calibrate RUN...`.

Two constants are fitted, because two differ most between sites: how fast a device computes, and the host time
of one collective of ZeRO-3. Their sum of squared relative errors is least (Gauss-Newton; predictions
are straight lines in both, but for the bend where communication is hidden no longer).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from megatune.plan.kept import read_kept, write_kept

_ROUNDS = 12
_NUDGE = 1e-3
_LEAST_GATHER_S = 1e-6
_SINGULAR = 1e-9

Predict = Callable[["Constants"], list[float]]
"""Seconds of each measured step with such constants."""


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What is fitted."""

    compute_factor: float
    """Computation takes so many times what the model says without a calibration."""
    gather_overhead_s: float
    """See speeds.py."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The constants of one kind of device at one place, in one precision."""

    device: str
    """A name of the hardware table, or cpu."""
    precision: str
    flops_per_s: float
    """Of one rank's matrix products of endless size."""
    gather_overhead_s: float
    framework_bytes: int | None
    """Private host memory of one rank before it holds a model; None where no run has measured it."""
    num_runs: int
    error_before: float | None
    """Median relative error of the runs' steps with the constants there were; None where there were none."""
    error_after: float
    measured_at: str
    """UTC, `2026-01-31T12:00:00Z`."""


def fit_constants(predict: Predict, measured_s: Sequence[float], start: Constants) -> Constants:
    """The constants with the least squared relative errors; `start` gives what the runs do not determine.

    One run, or runs that all gather alike, determine the speed of computation alone.
    """
    found = start
    for _ in range(_ROUNDS):
        step = _both(predict, measured_s, found) or _compute_alone(predict, measured_s, found)
        if step.gather_overhead_s < 0 or step.compute_factor <= 0:
            found = Constants(compute_factor=found.compute_factor, gather_overhead_s=0.0)
            step = _compute_alone(predict, measured_s, found)
        found = step
    return found


def relative_errors(predicted_s: Sequence[float], measured_s: Sequence[float]) -> list[float]:
    """Predicted over measured, less 1.

    >>> relative_errors([1.5], [1.0])
    [0.5]
    """
    return [one / other - 1 for one, other in zip(predicted_s, measured_s, strict=True)]


def _both(predict: Predict, measured_s: Sequence[float], now: Constants) -> Constants | None:
    """One Gauss-Newton step in both constants; None where the runs do not tell them apart."""
    by_compute, by_gather = _slopes(predict, measured_s, now)
    missing = [-error for error in relative_errors(predict(now), measured_s)]
    a = sum(x * x for x in by_compute)
    b = sum(x * y for x, y in zip(by_compute, by_gather, strict=True))
    c = sum(y * y for y in by_gather)
    if len(measured_s) < 2 or a * c - b * b <= _SINGULAR * a * c:
        return None
    left = sum(x * r for x, r in zip(by_compute, missing, strict=True))
    right = sum(y * r for y, r in zip(by_gather, missing, strict=True))
    return Constants(
        compute_factor=now.compute_factor + (c * left - b * right) / (a * c - b * b),
        gather_overhead_s=now.gather_overhead_s + (a * right - b * left) / (a * c - b * b),
    )


def _compute_alone(predict: Predict, measured_s: Sequence[float], now: Constants) -> Constants:
    by_compute, _ = _slopes(predict, measured_s, now)
    missing = [-error for error in relative_errors(predict(now), measured_s)]
    change = sum(x * r for x, r in zip(by_compute, missing, strict=True)) / sum(x * x for x in by_compute)
    # Halved at the most: a step that gathers dominate must not make computation take no time.
    factor = max(now.compute_factor + change, now.compute_factor / 2)
    return Constants(compute_factor=factor, gather_overhead_s=now.gather_overhead_s)


def _slopes(predict: Predict, measured_s: Sequence[float], at: Constants) -> tuple[list[float], list[float]]:
    """Relative change of each prediction with each constant."""
    by_factor, by_gather = _NUDGE * at.compute_factor, max(_LEAST_GATHER_S, _NUDGE * at.gather_overhead_s)
    slower = Constants(compute_factor=at.compute_factor + by_factor, gather_overhead_s=at.gather_overhead_s)
    later = Constants(compute_factor=at.compute_factor, gather_overhead_s=at.gather_overhead_s + by_gather)
    now = predict(at)
    return (
        [(y - x) / by_factor / t for x, y, t in zip(now, predict(slower), measured_s, strict=True)],
        [(y - x) / by_gather / t for x, y, t in zip(now, predict(later), measured_s, strict=True)],
    )


def write_calibration(file: Path, place: str, calibration: Calibration) -> None:
    """Put `calibration` into `file`, beside those of other places and devices. Raises OSError."""
    known = read_kept(file, "calibrations")
    known.setdefault(place, {})[_key(calibration.device, calibration.precision)] = asdict(calibration)
    write_kept(file, "calibrations", known)


def read_calibration(file: Path, place: str, *, device: str, precision: str) -> Calibration | None:
    """What was fitted at `place`; None when nothing was, or another version did it."""
    entry = read_kept(file, "calibrations").get(place, {}).get(_key(device, precision))
    if not isinstance(entry, dict) or entry.keys() != {field.name for field in fields(Calibration)}:
        return None
    return Calibration(**entry)


def _key(device: str, precision: str) -> str:
    return f"{device}/{precision}"
