"""The validation losses of a running trial, as they come into its metrics.jsonl."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatune.report.metrics import read_metrics


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One evaluation after a step."""

    step: int
    total_steps: int
    loss: float | None
    """Nats a target token; None when it was not a number."""

    @property
    def percent(self) -> int:
        """How much of the run was done, rounded."""
        return round(100 * self.step / self.total_steps)


def losses_of(metrics: Path) -> list[Loss]:
    """All evaluations of validation after a run's first step; none before there are metrics.

    Raises MegatuneError when the file cannot be read.
    """
    if not metrics.is_file():
        return []
    found, total_steps = [], None
    for entry in read_metrics(metrics):
        if entry["event"] == "run":
            total_steps = entry["total_steps"]
        elif _is_validation(entry) and entry["step"] > 0 and total_steps:
            found.append(Loss(step=entry["step"], total_steps=total_steps, loss=entry["loss"]))
    return found


def _is_validation(entry: Mapping[str, Any]) -> bool:
    # Not the test split, whose scores must decide nothing.
    return bool(entry["event"] == "eval" and entry["split"] == "validation")


class LossWatch:
    """Reads a metrics file again only when it has changed."""

    def __init__(self, metrics: Path) -> None:
        self._metrics = metrics
        self._seen: tuple[int, int] | None = None
        self._losses: list[Loss] = []

    def losses(self) -> list[Loss]:
        """All evaluations so far."""
        try:
            state = self._metrics.stat()
        except FileNotFoundError:
            return []
        if self._seen != (state.st_ino, state.st_size):
            self._seen = state.st_ino, state.st_size
            self._losses = losses_of(self._metrics)
        return self._losses
