"""Find the checkpoint to go on from, make sure of every byte of it, and open this rank's part."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatune.checkpoint.folders import whole_and_passed_over
from megatune.checkpoint.layout import TRAINING, WEIGHTS, Layout, read_json
from megatune.checkpoint.manifest import Manifest, read_manifest, why_incomplete
from megatune.checkpoint.rng import restore_rng
from megatune.checkpoint.saved_state import SavedPieces
from megatune.checkpoint.verify import damage
from megatune.checkpoint.weights_index import WeightEntry
from megatune.engine.world import World
from megatune.errors import CheckpointError, ResumeError
from megatune.launch.checkpoints import finished, step_of


@dataclass(frozen=True, kw_only=True)
class Found:
    """A checkpoint whose bytes are all as they were saved."""

    folder: Path
    manifest: Manifest
    training: dict[str, Any]
    """What all ranks share: `training.json`."""
    weights: dict[str, WeightEntry]
    verified_seconds: float
    """What it took to read and hash all files, divided among the ranks."""


def find_checkpoint(checkpoints: Path, resume: str, world: World) -> tuple[Found | None, list[str]]:
    """The checkpoint to go on from, and why newer ones are not. Collective: every rank calls it.

    `resume` is `auto` (the newest one that verifies, None when nothing was ever saved), `none`, or a
    folder. The first rank looks and tells the others: file systems of clusters show changes at
    different times. Raises ResumeError for a folder that is no whole checkpoint and CheckpointError
    when what was asked for, or everything that was saved, is damaged.
    """
    if resume == "none":
        return None, []
    if resume != "auto":
        return _the_one(Path(resume), world), []
    candidates, remarks = world.first_rank(lambda: whole_and_passed_over(checkpoints))
    for folder in candidates:
        found, problems = open_checkpoint(folder, world)
        if found is not None:
            return found, [text for step, text in remarks if step > found.manifest.step]
        remarks.append((step_of(folder) or 0, " ".join(problems)))
    if remarks and _something_was_saved(checkpoints, world):
        raise CheckpointError(
            f"{checkpoints} holds no checkpoint that can be used: {'; '.join(text for _, text in remarks)} "
            "Restore one of them from a copy, or set checkpoint.resume=none to start again."
        )
    return None, [text for _, text in remarks]


def _something_was_saved(checkpoints: Path, world: World) -> bool:
    """Whether a checkpoint was ever finished here: starting anew is then nothing to do without being asked."""
    return world.first_rank(lambda: bool(finished(checkpoints)))


def _the_one(folder: Path, world: World) -> Found:
    reason = world.first_rank(lambda: why_incomplete(folder) or "")
    if reason:
        raise ResumeError(
            f"checkpoint.resume: {folder} is not a whole checkpoint: {reason}. Name another folder, or use "
            "auto (the newest whole one) or none (start anew)."
        )
    found, problems = open_checkpoint(folder, world)
    if found is None:
        raise CheckpointError(
            f"checkpoint.resume: {' '.join(problems)} Name another folder, or use auto (the newest whole one)."
        )
    return found


def open_checkpoint(folder: Path, world: World) -> tuple[Found | None, list[str]]:
    """`folder` once every file has been hashed by some rank, or what is wrong with it. Collective.

    A rank takes the files whose numbers are its own modulo the ranks: on the saved layout those it will
    read. The verdicts are shared before anybody uses a tensor. Raises CheckpointError for a manifest that
    cannot be trusted.
    """
    started = time.monotonic()
    manifest: Manifest = world.first_rank(lambda: read_manifest(folder))
    names = [name for name in sorted(manifest.files) if _number(name) % world.size == world.rank]
    problems = sorted(
        {text for texts in world.gather_objects(damage(folder, manifest, names)) for text in texts}
    )
    if problems:
        return None, problems
    training, weights = world.first_rank(lambda: (read_json(folder / TRAINING), _read_weights(folder)))
    return (
        Found(
            folder=folder,
            manifest=manifest,
            training=training,
            weights=weights,
            verified_seconds=time.monotonic() - started,
        ),
        [],
    )


def _number(name: str) -> int:
    """The rank in a rank file's name; 0 for the files that all share."""
    digits = name.removeprefix("rank-").partition(".")[0]
    return int(digits) if name.startswith("rank-") else 0


def _read_weights(folder: Path) -> dict[str, WeightEntry]:
    stored = read_json(folder / WEIGHTS)
    try:
        return {name: WeightEntry.from_json(entry) for name, entry in stored.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} does not describe weights: {error}.") from error


def open_state(
    found: Found, weights: dict[str, Any], world: World, *, is_replicated: bool = False
) -> SavedPieces:
    """This rank's part of `found` under the layout of `world`, for `TrainingEngine.load_state`.

    `weights`: `describe_weights` of the model that goes on. `is_replicated`: as the engine says. Raises
    ResumeError when it is another model.
    """
    layout, rank = layout_of(world), world.rank
    if is_replicated:
        layout, rank = Layout(data_parallel=1, tensor_parallel=world.tensor_parallel), world.tensor_rank
    return SavedPieces(
        folder=found.folder,
        saved_layout=found.manifest.layout,
        saved_weights=found.weights,
        layout=layout,
        weights={name: WeightEntry.from_json(entry) for name, entry in weights.items()},
        rank=rank,
    )


def restore_generators(found: Found, world: World) -> bool:
    """Put the random generators back, where the layout is the saved one. Returns whether it is.

    On another layout there are no states to go on with: the generators stay as they were seeded at the
    start, from `train.seed` and the data-parallel rank.
    """
    if not layout_of(world).has_ranks_of(found.manifest.layout):
        return False
    restore_rng(found.folder, world.rank, world.device)
    return True


def layout_of(world: World, accumulation: int = 1) -> Layout:
    """The layout of the ranks that are running."""
    return Layout(
        data_parallel=world.data_parallel, tensor_parallel=world.tensor_parallel, accumulation=accumulation
    )
