"""What a world is asked to do. Apart from `world`, so that the process that asks needs no DeepSpeed."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatune.config import BatchShape


@dataclass(frozen=True, kw_only=True)
class WorldTask:
    """What a world is asked to do, as the ranks read it from a file."""

    run_file: str
    overrides: list[str]
    """The user's, then those that make the layout."""
    is_reference: bool
    model: str
    """Folder of the model: not the run's when that was shrunk or has dropout."""
    head: dict[str, Any] | None
    """The fields of its `HeadSpec`, for a classifier."""
    prepared: str
    """Folder of the prepared training rows."""
    num_steps: int
    micro: int
    accumulation: int
    global_sequences: int
    trace: str
    """Folder for the answer."""

    @property
    def batch(self) -> BatchShape:
        return BatchShape(
            micro=self.micro, accumulation=self.accumulation, global_sequences=self.global_sequences
        )


def write_task(path: Path, task: WorldTask) -> None:
    path.write_text(json.dumps(asdict(task)), encoding="utf-8")


def read_task(path: Path) -> WorldTask:
    return WorldTask(**json.loads(path.read_text(encoding="utf-8")))
