"""The scores of a set of answers, and how sure they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Interval = tuple[float, float]

_LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "ter", "hamming_loss")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a task's metrics say about all rows of a split."""

    metrics: Mapping[str, float]
    """Name -> value; the first is the one a reader wants to see first."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """Name -> the middle 95 % of the values of bootstrap samples of the rows (`metrics/bootstrap.py`)."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Reports, confusion matrices, signatures: anything that is no single number."""
    notices: tuple[str, ...] = ()
    """What a reader must know of the numbers."""


def greater_is_better(metric: str) -> bool:
    """Whether a higher value of this metric is a better one.

    >>> greater_is_better("macro_f1"), greater_is_better("word_perplexity")
    (True, False)
    """
    return not any(metric == name or metric.endswith(f"_{name}") for name in _LOWER_IS_BETTER)
