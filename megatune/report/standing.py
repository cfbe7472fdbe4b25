"""How far a run has come, read from its metrics."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from megatune.report.goodput import Goodput, goodput
from megatune.report.summary import slow_ranks

_STEPS_FOR_SPEED = 50  # as for the progress bar: the first steps warm up, the last ones tell the speed


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the metrics say about a run. None is unknown."""

    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    """Median of the last steps, over all devices."""
    step_seconds: float | None = None
    """Median of the last steps."""
    saves: tuple[tuple[int, datetime | None], ...] = ()
    """Step and time of each checkpoint that was saved, in order."""
    last_record_at: datetime | None = None
    stop_reason: str | None = None
    """Of the last start, when it came to a stop by itself."""
    stop_code: int | None = None
    restart_count: int | None = None
    goodput: Goodput | None = None
    slow_ranks: Mapping[str, int] = field(default_factory=dict)
    """Rank and host -> how often it was found to hold the others up."""

    @property
    def eta_s(self) -> float | None:
        """Seconds that the steps left will take; evaluations and saves come on top."""
        if self.step is None or self.total_steps is None or self.step_seconds is None:
            return None
        return max(0, self.total_steps - self.step) * self.step_seconds


def standing(entries: Sequence[Mapping[str, Any]]) -> Standing:
    """The standing that the lines of a metrics file tell."""
    starts = [entry for entry in entries if entry.get("event") == "run"]
    ends = [entry for entry in entries if entry.get("event") in ("run", "stop")]
    steps = [entry for entry in entries if entry.get("event") == "step"]
    recent = steps[-_STEPS_FOR_SPEED:]
    stop: Mapping[str, Any] = ends[-1] if ends and ends[-1]["event"] == "stop" else {}
    return Standing(
        step=steps[-1]["step"] if steps else None,
        total_steps=starts[-1].get("total_steps") if starts else None,
        loss=steps[-1].get("loss") if steps else None,
        tokens_per_second=_median(recent, "tokens_per_second"),
        step_seconds=_median(recent, "step_seconds"),
        saves=tuple(
            (entry["step"], _moment(entry.get("time"))) for entry in entries if entry.get("event") == "save"
        ),
        last_record_at=_moment(entries[-1].get("time")) if entries else None,
        stop_reason=stop.get("reason"),
        stop_code=stop.get("exit_code"),
        restart_count=starts[-1].get("restart_count") if starts else None,
        goodput=goodput(entries),
        slow_ranks=slow_ranks(entries),
    )


def _median(entries: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [entry[name] for entry in entries if entry.get(name) is not None]
    return statistics.median(values) if values else None


def _moment(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC)
    except ValueError:
        return None
