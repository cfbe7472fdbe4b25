"""What a learning-rate range test shows: from losses at rising rates to a rate to train with.

The rate rises exponentially (Smith 2017, arXiv:1506.01186, section 3.3). Too small ones change nothing, then the
loss falls, then training breaks down. Losses of single batches are noisy, so a running mean is judged.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_SMOOTHING = 0.8
"""Share of the past in the running mean."""
_BROKEN = 1.5
"""Times the lowest smoothed loss: training has broken down."""
_CLEAR_FALL = 0.02
"""Share of the loss at the start by which it must have fallen to be told from noise."""
_BELOW_LOWEST = 10.0
"""A tenth of the rate with the lowest loss: there the rate is about to be too high (fastai's `minimum`)."""


@dataclass(frozen=True, kw_only=True)
class RangeResult:
    """What the test showed. None: it did not."""

    rates: tuple[float, ...]
    losses: tuple[float | None, ...]
    smoothed: tuple[float, ...]
    """Of the steps before a loss that was no number."""
    steepest_rate: float | None
    """Where the smoothed loss falls fastest with the logarithm of the rate."""
    lowest_rate: float | None
    """Where the smoothed loss is lowest."""
    broken_rate: float | None
    """Where training broke down."""
    suggested_rate: float | None
    why: str

    def as_object(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def smooth(losses: Sequence[float | None]) -> list[float]:
    """Running means with their start corrected, up to the first loss that is no number."""
    found: list[float] = []
    mean = 0.0
    for count, loss in enumerate(losses, start=1):
        if loss is None or not math.isfinite(loss):
            break
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        found.append(mean / (1 - _SMOOTHING**count))
    return found


def has_broken(losses: Sequence[float | None]) -> bool:
    """Whether training has broken down: nothing more is to be learnt from it."""
    smoothed = smooth(losses)
    return len(smoothed) < len(losses) or bool(smoothed and smoothed[-1] > _BROKEN * min(smoothed))


def judge_range(rates: Sequence[float], losses: Sequence[float | None]) -> RangeResult:
    """The verdict over a test. Raises ValueError without a single loss."""
    smoothed = smooth(losses)
    if not smoothed:
        raise ValueError("a range test without a loss that is a number")
    lowest = smoothed.index(min(smoothed))
    broken = _first_broken(smoothed, len(losses))
    fall = (smoothed[0] - smoothed[lowest]) / smoothed[0]
    steepest = _steepest(smoothed, lowest)
    suggested = None
    if fall < _CLEAR_FALL or steepest is None:
        why = (
            f"the loss fell by {max(0.0, fall):.1%} only, which noise does too: give the test more steps, "
            "or a larger batch"
        )
    else:
        suggested = float(f"{rates[lowest] / _BELOW_LOWEST:.1e}")
        why = f"a tenth of {rates[lowest]:.1e}, where the smoothed loss is lowest ({smoothed[lowest]:.3f})"
        if broken is None and lowest == len(smoothed) - 1:
            why += "; it was still falling at the highest rate, so that more may be better"
    return RangeResult(
        rates=tuple(rates),
        losses=tuple(losses),
        smoothed=tuple(smoothed),
        steepest_rate=None if suggested is None or steepest is None else rates[steepest],
        lowest_rate=None if suggested is None else rates[lowest],
        broken_rate=None if broken is None else rates[broken],
        suggested_rate=suggested,
        why=why,
    )


def _first_broken(smoothed: Sequence[float], num_losses: int) -> int | None:
    """The step at which the loss left its lowest value for good, or was no number any more."""
    lowest = min(smoothed)
    after = range(smoothed.index(lowest), len(smoothed))
    above = next((step for step in after if smoothed[step] > _BROKEN * lowest), None)
    return len(smoothed) if above is None and len(smoothed) < num_losses else above


def _steepest(smoothed: Sequence[float], lowest: int) -> int | None:
    """Of the steps up to the lowest loss, the one after which a step's loss falls most (all steps are as wide)."""
    falls = [smoothed[step] - smoothed[step + 1] for step in range(lowest)]
    return falls.index(max(falls)) if falls and max(falls) > 0 else None
