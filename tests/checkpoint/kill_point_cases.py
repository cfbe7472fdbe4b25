"""What ranks do in the tests of kill points: train, and be killed at one chosen moment of the save of one step.

The moment is told by what the system is asked for (Python's audit events: open, rename, remove), so it
stays where it is when the code of a save is moved about.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiny_runs import train

from megatune.launch.ranks import discover_rank


@dataclass(frozen=True)
class KillPoint:
    """A moment of a save, and which rank is killed at it."""

    rank: int
    is_saved: bool
    """Whether the checkpoint stands by then: the next start goes on from it, else from the one before."""
    event: str
    """Of https://docs.python.org/3/library/audit_events.html."""
    is_here: Callable[[str, str], bool]
    """(path of the event, name of the checkpoint being saved) -> whether this is the moment."""


POINTS = {
    "before a shard": KillPoint(
        3, False, "open", lambda path, step: path.endswith(f"/{step}.tmp/rank-00003.safetensors")
    ),
    "after some shards": KillPoint(
        1, False, "open", lambda path, step: path.endswith(f"/{step}.tmp/rank-00001.json")
    ),
    "before the manifest": KillPoint(
        0, False, "open", lambda path, step: path.endswith(f"/{step}.tmp/manifest.json")
    ),
    "after the manifest, before the rename": KillPoint(
        0, False, "os.rename", lambda path, step: path.endswith(f"/{step}.tmp")
    ),
    "after the rename, before the hints": KillPoint(
        0, True, "open", lambda path, _: "/.latest." in path and path.endswith(".tmp")
    ),
    "between the hints' writing and renaming": KillPoint(
        0, True, "os.rename", lambda path, _: "/.latest." in path
    ),
    "before a prune's rename": KillPoint(
        0, True, "os.rename", lambda path, step: path[-13:-8] == "step-" and not path.endswith(step)
    ),
    "after a prune's rename": KillPoint(0, True, "shutil.rmtree", lambda path, _: path.endswith(".old.tmp")),
    "in the middle of a prune": KillPoint(
        0, True, "os.remove", lambda path, _: path.endswith("rank-00001.safetensors")
    ),
}


def train_until_killed(run_file: str, overrides: list[str], point_name: str, step: int) -> int:
    """`train`, with this rank's SIGKILL at that point of the save of `step` if it is the point's rank."""
    point, info, folder = POINTS[point_name], discover_rank(), f"step-{step:08d}"
    assert info is not None
    is_due = False

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal is_due
        if event not in ("open", "os.rename", "os.remove", "shutil.rmtree"):
            return
        path = str(args[0])
        is_due = is_due or f"/{folder}.tmp" in path
        if is_due and event == point.event and point.is_here(path, folder):
            os.kill(os.getpid(), signal.SIGKILL)

    if info.rank == point.rank:
        sys.addaudithook(watch)
    return train(run_file, overrides)
