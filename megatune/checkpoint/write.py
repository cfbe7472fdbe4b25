"""Save a checkpoint so that it is either whole under its final name or not there at all.

The order is the protocol: everything is written into `step-N.tmp`, synced, listed with sizes and
hashes in a manifest, and only then renamed.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xxhash

from megatune.checkpoint.folders import put_in_place
from megatune.checkpoint.layout import (
    MANIFEST,
    MODEL_FOLDER,
    SCHEMA,
    TRAINING,
    WEIGHTS,
    Layout,
    folder_name,
    rank_file,
)
from megatune.checkpoint.rng import rng_scalars, rng_tensors
from megatune.checkpoint.tensors import save_tensors
from megatune.engine.state import RankState
from megatune.engine.world import World
from megatune.errors import CheckpointError
from megatune.files import sync_folder
from megatune.units import format_bytes

Json = Mapping[str, Any]


def save_checkpoint(
    checkpoints: Path,
    *,
    step: int,
    world: World,
    state: RankState,
    training: Json,
    weights: Json,
    write_model: Callable[[Path], None],
) -> tuple[Path, int]:
    """Save after `step` steps; returns the folder and its bytes. Collective: every rank calls it.

    `write_model(folder)` puts config.json and tokenizer files there (first rank only). Raises
    CheckpointError on every rank when one rank cannot write; then nothing is left under the final name.
    """
    final = checkpoints / folder_name(step)
    unfinished = final.with_suffix(".tmp")
    _agree(world, lambda: _prepare(unfinished, world, state))
    files: dict[str, Any] = {}
    for entries in _agree(
        world, lambda: _write_rank(unfinished, world, state, training, weights, write_model)
    ):
        files |= entries
    _agree(world, lambda: _commit(unfinished, final, step, world, files))
    return final, sum(entry["size"] for entry in files.values())


def _agree(world: World, act: Callable[[], Any]) -> list[Any]:
    """Run `act` on this rank; all ranks' results, or an error on all when one failed.

    It is a CheckpointError with every rank's words; a rank that failed for another reason than its
    disk raises its own error, for the traceback.
    """
    unexpected: Exception | None = None
    try:
        answer: tuple[str | None, Any] = (None, act())
    except (OSError, CheckpointError) as error:
        answer = (f"rank {world.rank}: {error}", None)
    except Exception as error:  # the others must not wait for this rank
        answer, unexpected = (f"rank {world.rank}: {type(error).__name__}: {error}", None), error
    answers = world.gather_objects(answer)
    if unexpected is not None:
        raise unexpected
    problems = [problem for problem, _ in answers if problem]
    if problems:
        raise CheckpointError(
            f"the checkpoint could not be saved; older ones are untouched. {' '.join(problems)}"
        )
    return [result for _, result in answers]


def _prepare(unfinished: Path, world: World, state: RankState) -> None:
    if not world.is_first:
        return
    if unfinished.exists():
        shutil.rmtree(unfinished)  # ours: an earlier save of this step was cut off
    unfinished.mkdir(parents=True)
    pieces = [tensor for kind in state.tensors.values() for tensor in kind.values()]
    needed = sum(piece.numel() * piece.element_size() for piece in pieces) * world.size
    free = shutil.disk_usage(unfinished).free
    if free < needed:
        unfinished.rmdir()
        raise CheckpointError(
            f"{unfinished.parent} has {format_bytes(free)} free and a checkpoint needs {format_bytes(needed)}."
            " Free space, lower checkpoint.save_total_limit, or set train.output_dir to a larger disk."
        )


def _write_rank(
    folder: Path,
    world: World,
    state: RankState,
    training: Json,
    weights: Json,
    write_model: Callable[[Path], None],
) -> dict[str, Any]:
    tensors = {
        f"{kind}/{name}": piece.cpu()
        for kind, pieces in state.tensors.items()
        for name, piece in pieces.items()
    }
    written = [folder / rank_file(world.rank, "safetensors"), folder / rank_file(world.rank, "json")]
    save_tensors(tensors | rng_tensors(world.device), written[0])
    _write_json(written[1], {**state.scalars, "rng": rng_scalars()})
    if world.is_first:
        _write_json(folder / TRAINING, training)
        _write_json(folder / WEIGHTS, weights)
        (folder / MODEL_FOLDER).mkdir()
        write_model(folder / MODEL_FOLDER)
        written += [folder / TRAINING, folder / WEIGHTS, *sorted((folder / MODEL_FOLDER).iterdir())]
    return {str(path.relative_to(folder)): _sync_and_hash(path) for path in written}


def _write_json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False), encoding="utf-8")


def _sync_and_hash(path: Path) -> dict[str, Any]:
    """Force a file to the disk, and hash what was written."""
    digest = xxhash.xxh3_128()
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        while chunk := file.read(2**22):
            digest.update(chunk)
    return {"size": path.stat().st_size, "xxh3_128": digest.hexdigest()}


def _commit(unfinished: Path, final: Path, step: int, world: World, files: dict[str, Any]) -> None:
    if not world.is_first:
        return
    layout = Layout(data_parallel=world.data_parallel, tensor_parallel=world.tensor_parallel)
    packages = ("megatune", "torch", "deepspeed", "transformers")
    manifest = {
        "schema": SCHEMA,
        "step": step,
        "layout": asdict(layout),
        "versions": {package: version(package) for package in packages},
        "files": files,
    }
    _write_json(unfinished / MANIFEST, manifest)
    _sync_and_hash(unfinished / MANIFEST)
    sync_folder(unfinished / MODEL_FOLDER)
    sync_folder(unfinished)
    put_in_place(unfinished, final)
