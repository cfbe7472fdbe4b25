"""What happens to whole checkpoint folders: replaced, pruned, set aside, pointed at. First rank only.

A folder is renamed before it is deleted, so that a kill half-way leaves none that looks whole.
Folders that are not ours or not whole are left alone.
"""

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from megatune.checkpoint.layout import step_of, why_incomplete
from megatune.files import sync_folder, write_text_atomic

_UNFINISHED = re.compile(r"step-\d{8}(\.old)?\.tmp")
_OLD = ".old.tmp"


def put_in_place(unfinished: Path, final: Path) -> None:
    """Rename `unfinished` to `final`. An older `final` is deleted only when the new one stands."""
    old = final.with_suffix(_OLD)
    if old.exists():
        shutil.rmtree(old)
    if final.exists():
        final.rename(old)
    unfinished.rename(final)
    sync_folder(final.parent)
    if old.exists():
        shutil.rmtree(old)


def prune(checkpoints: Path, keep: int, *, protected: Collection[Path] = ()) -> None:
    """Remove all but the newest `keep` whole checkpoints and the `protected` ones."""
    for folder in sorted(_whole(checkpoints))[:-keep]:
        if folder not in protected:
            doomed = folder.with_suffix(_OLD)
            folder.rename(doomed)
            sync_folder(checkpoints)
            shutil.rmtree(doomed)


def remove_unfinished(checkpoints: Path) -> list[Path]:
    """Delete what earlier, cut-off saves and prunes left; returns it. Before training.

    A whole checkpoint that a save had moved away without putting its own in its place comes back.
    """
    removed = []
    for folder in sorted(checkpoints.glob("step-*.tmp")):
        if not _UNFINISHED.fullmatch(folder.name):
            continue
        final = folder.with_name(folder.name[: -len(_OLD)])
        if folder.name.endswith(_OLD) and not final.exists() and why_incomplete(folder) is None:
            folder.rename(final)
            sync_folder(checkpoints)
            continue
        shutil.rmtree(folder)
        removed.append(folder)
    return removed


def set_aside_newer(checkpoints: Path, start: Path | None, step: int) -> list[Path]:
    """Rename the whole checkpoints that a start from `start` (after `step` steps) would meet again.

    They are from a run that was given up: left under their names, the newest of them would be what
    the next start goes on from. Nothing is deleted. Returns the new names.
    """
    aside = []
    for folder in sorted(_whole(checkpoints)):
        if (step_of(folder) or 0) < step or (start is not None and folder.resolve() == start.resolve()):
            continue
        target, number = folder.with_suffix(".abandoned"), 1
        while target.exists():
            number += 1
            target = folder.with_suffix(f".abandoned-{number}")
        folder.rename(target)
        aside.append(target)
    if aside:
        sync_folder(checkpoints)
    return aside


def write_hint(path: Path, checkpoint: Path | None) -> None:
    """Let the text file `path` name the folder of a checkpoint; without one, take it away.

    For people and scripts. Nothing in megatune reads it: what a folder holds decides.
    """
    if checkpoint is None:
        path.unlink(missing_ok=True)
    else:
        write_text_atomic(path, checkpoint.name + "\n")


def _whole(checkpoints: Path) -> list[Path]:
    if not checkpoints.is_dir():
        return []
    return [
        path for path in checkpoints.iterdir() if step_of(path) is not None and why_incomplete(path) is None
    ]
