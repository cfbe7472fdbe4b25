"""What happens to whole checkpoint folders: found, replaced, pruned, set aside, pointed at. First rank only.

A folder is renamed before it is deleted, so that a kill half-way leaves none that looks whole.
Links, copies, folders that are not whole and those with a file that no save wrote are left alone.
"""

import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from megatune.checkpoint.layout import MODEL_FOLDER, TRAINING, read_json
from megatune.checkpoint.manifest import read_manifest, why_incomplete
from megatune.errors import CheckpointError
from megatune.files import sync_folder, write_text_atomic
from megatune.launch.checkpoints import MANIFEST, step_of

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


def prunable(
    checkpoints: Path, keep: int, *, protected: Collection[Path] = (), damaged: Collection[Path] = ()
) -> list[Path]:
    """What `prune` removes: all but the newest `keep`, the `protected`, and those kept for ever.

    damaged: what is known to be so. It stays, and is none of the newest that are kept.
    """
    old = sorted(folder for folder in _whole(checkpoints) if folder not in damaged)[:-keep]
    return [folder for folder in old if folder not in protected and _may_be_removed(folder)]


def _may_be_removed(folder: Path) -> bool:
    try:
        return not read_manifest(folder).kept_for_ever and not foreign_files(folder)
    except CheckpointError:
        return False  # another prune, beside this one, is removing it


def prune(
    checkpoints: Path, keep: int, *, protected: Collection[Path] = (), damaged: Collection[Path] = ()
) -> list[Path]:
    """Remove what `prunable` names; returns what was removed."""
    removed = []
    for folder in prunable(checkpoints, keep, protected=protected, damaged=damaged):
        renamed = folder.with_suffix(_OLD)
        try:
            folder.rename(renamed)
        except FileNotFoundError:
            continue  # another prune, beside this one, was faster
        sync_folder(checkpoints)
        shutil.rmtree(renamed)
        removed.append(folder)
    return removed


def foreign_files(folder: Path) -> list[str]:
    """What lies in a whole checkpoint and is not in its manifest: somebody else put it there."""
    own = {MANIFEST, MODEL_FOLDER, *read_manifest(folder).files}
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(name for name in found if name not in own)


def best_of(whole: Sequence[Path]) -> Path | None:
    """That of the checkpoints `whole`, newest first, which the newest that can be read names as the best so far."""
    for newest in whole:
        try:
            step = read_json(newest / TRAINING).get("state", {}).get("best_step")
        except CheckpointError:
            continue  # `verify` tells of it; an older one may name the same
        return next((folder for folder in whole if step_of(folder) == step), None)
    return None


def remove_unfinished(checkpoints: Path) -> list[Path]:
    """Delete what earlier, cut-off saves and prunes left; returns it. Before training.

    A whole checkpoint that a save had moved away without putting its own in its place comes back.
    """
    removed = []
    for folder in sorted(checkpoints.glob("step-*.tmp")):
        if not _UNFINISHED.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
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
    for scratch in path.parent.glob(f".{path.name}.*.tmp"):  # of a start that was killed while it wrote
        scratch.unlink(missing_ok=True)
    if checkpoint is None:
        path.unlink(missing_ok=True)
    else:
        write_text_atomic(path, checkpoint.name + "\n")


def newest_whole(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint below `checkpoints`, and why newer ones were passed over.

    Looks at names and sizes; see `verify` for the bytes.
    """
    whole, passed_over = whole_and_passed_over(checkpoints)
    newest = step_of(whole[0]) if whole else None
    return (
        whole[0] if whole else None,
        [text for step, text in passed_over if newest is None or step > newest],
    )


def whole_and_passed_over(checkpoints: Path) -> tuple[list[Path], list[tuple[int, str]]]:
    """The whole checkpoints, newest first, and (step, why it is none) of each other folder of that name."""
    whole: list[Path] = []
    passed_over: list[tuple[int, str]] = []
    for folder in sorted(named(checkpoints), reverse=True):
        reason = "it is a symbolic link" if folder.is_symlink() else why_incomplete(folder)
        if reason is None:
            whole.append(folder)
        else:
            passed_over.append((step_of(folder) or 0, f"{folder}: {reason}"))
    return whole, passed_over


def named(checkpoints: Path) -> list[Path]:
    """All that has the name of a checkpoint, in no order, whatever it holds."""
    if not checkpoints.is_dir():
        return []
    return [path for path in checkpoints.iterdir() if step_of(path) is not None]


def _whole(checkpoints: Path) -> list[Path]:
    return whole_and_passed_over(checkpoints)[0]
