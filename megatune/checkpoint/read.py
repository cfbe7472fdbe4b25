"""Load a checkpoint back into the ranks that saved it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash

from megatune.checkpoint.layout import (
    MANIFEST,
    TRAINING,
    Layout,
    newest_whole,
    rank_file,
    read_json,
    why_incomplete,
)
from megatune.checkpoint.rng import restore_rng
from megatune.checkpoint.tensors import read_tensors
from megatune.engine.state import RankState
from megatune.engine.world import World
from megatune.errors import CheckpointError, ResumeError


def find_checkpoint(checkpoints: Path, resume: str, world: World) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and remarks for the user. Collective: every rank calls it.

    `resume` is `auto` (the newest whole one, None when there is none), `none`, or a folder. The
    first rank looks and tells the others: file systems of clusters show changes at different times.
    Raises ResumeError for a folder that is no whole checkpoint.
    """

    def look() -> tuple[Path | None, list[str]]:
        if resume == "none":
            return None, []
        if resume == "auto":
            found, passed_over = newest_whole(checkpoints)
            return found, [f"passed over {reason}" for reason in passed_over]
        reason = why_incomplete(Path(resume))
        if reason:
            raise ResumeError(
                f"checkpoint.resume: {resume} is not a whole checkpoint: {reason}. Name another folder, or use "
                "auto (the newest whole one) or none (start anew)."
            )
        return Path(resume), []

    return world.first_rank(look)


def load_checkpoint(folder: Path, world: World) -> tuple[RankState, dict[str, Any]]:
    """This rank's state, and what all ranks share (`training.json`); restores the random generators.

    Every byte read is checked against the manifest's hash first. Raises CheckpointError on every
    rank when one rank's files are damaged, and ResumeError when the checkpoint was saved on another
    layout. Collective: every rank calls it.
    """
    manifest = world.first_rank(lambda: read_json(folder / MANIFEST))
    _check_layout(folder, manifest, world)
    names = [rank_file(world.rank, "safetensors"), rank_file(world.rank, "json"), TRAINING]
    problems = sorted(set(filter(None, world.gather_objects(_why_damaged(folder, names, manifest)))))
    if problems:
        raise CheckpointError(
            f"{' '.join(problems)} To go on from an older checkpoint, move {folder} away or set checkpoint.resume "
            "to that one's folder."
        )
    tensors = read_tensors(folder / names[0])
    scalars = read_json(folder / names[1])
    restore_rng(tensors, scalars["rng"], world.device)
    return RankState(_by_kind(tensors), scalars), read_json(folder / TRAINING)


def _why_damaged(folder: Path, names: list[str], manifest: Mapping[str, Any]) -> str | None:
    try:
        for name in names:
            check_file(folder, name, manifest)
    except CheckpointError as error:
        return str(error)
    return None


def check_file(folder: Path, name: str, manifest: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the file is byte for byte what was saved."""
    if name not in manifest["files"]:
        raise CheckpointError(f"{folder / name} is not in {MANIFEST}.")
    digest = xxhash.xxh3_128()
    try:
        with (folder / name).open("rb") as file:
            while chunk := file.read(2**22):
                digest.update(chunk)
    except OSError as error:
        raise CheckpointError(f"{folder / name} cannot be read: {error.strerror}") from error
    if digest.hexdigest() != manifest["files"][name]["xxh3_128"]:
        raise CheckpointError(f"{folder / name} has changed since it was saved (its hash differs).")


def _check_layout(folder: Path, manifest: Mapping[str, Any], world: World) -> None:
    saved = Layout(**manifest["layout"])
    now = Layout(data_parallel=world.data_parallel, tensor_parallel=world.tensor_parallel)
    if saved != now:
        raise ResumeError(
            f"{folder} was saved at {saved} ({saved.num_ranks} ranks) and this run is {now} ({now.num_ranks} "
            f"ranks). Resume on the saved layout (parallel.tp_size={saved.tensor_parallel} on "
            f"{saved.num_ranks} ranks), or start anew from its exported weights: megatune export."
        )


def _by_kind(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    kinds: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if kind != "rng":
            kinds.setdefault(kind, {})[name] = tensor
    return kinds
