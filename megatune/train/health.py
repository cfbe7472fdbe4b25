"""Whether a step's numbers are any good: not finite, or a loss that jumps above the running median."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatune.config.health import HealthSection

Remedy = Literal["warn", "skip", "rollback", "stop"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is wrong with a step, and what the run file wants done about it."""

    kind: Literal["nonfinite", "spike"]
    remedy: Remedy
    words: str


def judge_loss(
    health: HealthSection, recent: Sequence[float], loss: float, *, norm_is_fine: bool = True
) -> Finding | None:
    """What is wrong with `loss`, if anything. All ranks ask with the same numbers.

    `recent`: the finite losses of the steps before, spikes left out, newest last. `norm_is_fine`: whether
    the gradient norm is finite, where it is known.
    """
    if not math.isfinite(loss) or not norm_is_fine:
        norm = "" if norm_is_fine else ", gradient norm not finite"
        return Finding(kind="nonfinite", remedy=health.on_nonfinite, words=f"loss {loss:.4g}{norm}")
    window = recent[-health.spike_window :]
    if health.on_spike == "off" or len(window) * 2 < health.spike_window:
        return None
    median = statistics.median(window)
    if loss <= health.spike_factor * median:
        return None
    words = f"loss {loss:.4g} is {loss / median:.1f} times the median of the last {len(window)} steps ({median:.4g})"
    return Finding(kind="spike", remedy=health.on_spike, words=words)


def remember_loss(
    health: HealthSection, recent: tuple[float, ...], loss: float, finding: Finding | None
) -> tuple[float, ...]:
    """`recent` after a step. A spike that nothing was done about counts: losses may stay higher."""
    if health.on_spike == "off" or not math.isfinite(loss):
        return recent
    if finding is not None and finding.remedy != "warn":
        return recent
    return (*recent, loss)[-health.spike_window :]
