"""What a tune maximises: speed, speed a device, little memory, or a weighted sum of them."""

from collections.abc import Mapping
from dataclasses import dataclass

from megatune.errors import ConfigError

GOALS = ("tokens_per_second", "tokens_per_gpu_hour", "memory")
_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is known of a candidate: measured, or expected."""

    token_s: float
    """Seconds a token of the whole job."""
    peak_bytes: float | None
    """Of the fullest device; None where it was not measured."""
    devices: int

    @property
    def tokens_per_second(self) -> float:
        return 1 / self.token_s

    @property
    def tokens_per_gpu_hour(self) -> float:
        return _HOUR_S / self.token_s / self.devices


@dataclass(frozen=True)
class Objective:
    """Goal -> weight; the weights add up to 1."""

    weights: Mapping[str, float]

    def score(self, figures: Figures, reference: Figures) -> float | None:
        """How many times as good as the reference: 1 is as good. None where a figure that counts is not known."""
        parts = {
            "tokens_per_second": figures.tokens_per_second / reference.tokens_per_second,
            "tokens_per_gpu_hour": figures.tokens_per_gpu_hour / reference.tokens_per_gpu_hour,
            "memory": _less(figures.peak_bytes, reference.peak_bytes),
        }
        total = 0.0
        for goal, weight in self.weights.items():
            part = parts[goal]
            if part is None:
                return None
            total += weight * part
        return total

    def __str__(self) -> str:
        if len(self.weights) == 1:
            return next(iter(self.weights))
        return " + ".join(f"{weight:g} x {goal}" for goal, weight in self.weights.items())


def _less(ours: float | None, theirs: float | None) -> float | None:
    return None if not ours or not theirs else theirs / ours


def parse_objective(text: str) -> Objective:
    """`tokens_per_second`, or `tokens_per_second=0.7,memory=0.3`. Raises ConfigError.

    >>> parse_objective("tokens_per_second=3,memory=1").weights["memory"]
    0.25
    """
    weights: dict[str, float] = {}
    problems = []
    for part in text.split(","):
        goal, _, number = part.strip().partition("=")
        weight = _weight(number)
        if goal not in GOALS or weight is None or goal in weights:
            problems.append(
                f"--objective: {part.strip()!r} is not one of {', '.join(GOALS)}, once each, alone or with a weight "
                "above 0, as in tokens_per_second=0.7,memory=0.3."
            )
        else:
            weights[goal] = weight
    if problems:
        raise ConfigError(problems, source="megatune tune")
    total = sum(weights.values())
    return Objective({goal: weight / total for goal, weight in weights.items()})


def _weight(number: str) -> float | None:
    try:
        weight = float(number or 1)
    except ValueError:
        return None
    return weight if 0 < weight < float("inf") else None
