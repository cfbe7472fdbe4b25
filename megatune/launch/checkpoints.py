"""Where the checkpoints of a run lie, by name. What is in them is in `checkpoint/layout.py`."""

import re
from pathlib import Path

MANIFEST = "manifest.json"
"""Written last into a checkpoint folder."""
_NAME = re.compile(r"step-(\d{8})", re.ASCII)


def folder_name(step: int) -> str:
    """The folder of the checkpoint after `step` steps.

    >>> folder_name(100)
    'step-00000100'
    """
    return f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint folder's name; None for anything else."""
    match = _NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else None


def finished(checkpoints: Path) -> list[Path]:
    """The folders in `checkpoints` that were written to their end, in no order; what happened to them since is open."""
    if not checkpoints.is_dir():
        return []
    return [
        path for path in checkpoints.iterdir() if step_of(path) is not None and (path / MANIFEST).is_file()
    ]


def newest_saved_step(checkpoints: Path) -> int:
    """The step of the newest checkpoint that was written to its end; -1 without any."""
    return max((step for path in finished(checkpoints) if (step := step_of(path)) is not None), default=-1)
