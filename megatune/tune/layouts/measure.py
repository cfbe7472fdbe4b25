"""What a trial has measured, read from its metrics.jsonl."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from megatune.report.metrics import read_metrics, settled_steps

Clock = Literal["wall", "cpu"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """The steps of one trial."""

    losses: tuple[float | None, ...]
    """Of every step, the warm-up's too."""
    wall_s: tuple[float, ...]
    """Of the timed steps."""
    cpu_s: tuple[float, ...]
    """Processor time of all ranks in each timed step."""
    tokens: tuple[int, ...]
    """Through the model in each timed step, without padding."""
    peak_bytes: int | None
    """The largest of any rank: allocated on a GPU, resident on a CPU."""
    engine: str
    """What really trained, in its own words."""
    attention: str | None

    def as_object(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_object(cls, entry: Mapping[str, Any]) -> "Measure":
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        return cls(**values)

    def step_token_s(self, clock: Clock, devices: int) -> list[float]:
        """Seconds a token of each timed step: by the wall clock, or the processor time of one rank's share.

        Processor time over the number of ranks is what the step would take if no rank ever waited.
        """
        seconds = self.wall_s if clock == "wall" else [each / devices for each in self.cpu_s]
        return [each / count for each, count in zip(seconds, self.tokens, strict=True)]

    def token_s(self, clock: Clock, devices: int) -> float:
        """The median of the timed steps."""
        return median(self.step_token_s(clock, devices))


def read_measure(metrics: Path, *, warmup_steps: int) -> Measure | None:
    """What is in the metrics so far; None before a step after the warm-up is.

    Raises MegatuneError when the file cannot be read.
    """
    if not metrics.is_file():
        return None
    entries = read_metrics(metrics)
    run = next((entry for entry in entries if entry["event"] == "run"), None)
    steps = [entry for entry in entries if entry["event"] == "step"]
    timed = settled_steps(entries, warmup_steps)
    if run is None or not timed:
        return None
    peaks = [step["peak_memory_bytes"] for step in steps if step["peak_memory_bytes"]]
    return Measure(
        losses=tuple(step["loss"] for step in steps),
        wall_s=tuple(step["step_seconds"] for step in timed),
        cpu_s=tuple(step["cpu_seconds"] for step in timed),
        tokens=tuple(step["tokens"] for step in timed),
        peak_bytes=max(peaks, default=None),
        engine=run["details"]["engine"],
        attention=run["details"].get("attention"),
    )
