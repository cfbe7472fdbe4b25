"""Save a checkpoint so that it is either whole under its final name or not there at all.

The order is the protocol: everything is written into `step-N.tmp`, synced, listed with sizes and
hashes in a manifest, and only then renamed.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xxhash

from megatune.checkpoint.folders import put_in_place
from megatune.checkpoint.layout import MANIFEST, MODEL_FOLDER, TRAINING, WEIGHTS, folder_name, rank_file
from megatune.checkpoint.manifest import FileEntry, Manifest, render_manifest
from megatune.checkpoint.read import layout_of
from megatune.checkpoint.rng import rng_scalars, rng_tensors
from megatune.checkpoint.stream import write_tensor_file
from megatune.engine.state import WEIGHT, RankState
from megatune.engine.world import World
from megatune.errors import CheckpointError, SaveError
from megatune.files import sync_folder
from megatune.units import format_bytes

Json = Mapping[str, Any]
_PACKAGES = ("megatune", "torch", "deepspeed", "transformers")


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the first rank writes beside the ranks' own pieces."""

    step: int
    training: Json
    """`training.json`."""
    weights: Json
    """`weights.json`: see `describe_weights`."""
    write_model: Callable[[Path], None]
    """Puts config.json and tokenizer files into a folder."""
    accumulation: int = 1
    config_hash: str = ""
    data: Json = field(default_factory=dict)
    """Of the manifest, as `accumulation` and `config_hash`."""
    kept_for_ever: bool = False


def save_checkpoint(checkpoints: Path, *, world: World, state: RankState, shared: Shared) -> tuple[Path, int]:
    """Save; returns the folder and its bytes. Collective: every rank calls it.

    Raises on every rank when one rank fails, and then leaves nothing behind and older checkpoints as
    they are: SaveError where the disk is the reason (full, quota, read-only, broken), CheckpointError
    for weights that are not finite and for anything else.
    """
    final = checkpoints / folder_name(shared.step)
    unfinished = final.with_suffix(".tmp")
    agree = _Agreement(world, unfinished)
    sizes = agree(lambda: _num_bytes_of_finite(state))
    agree(lambda: _prepare(unfinished, sum(sizes)) if world.is_first else None)
    files: dict[str, FileEntry] = {}
    for entries in agree(lambda: _write_rank(unfinished, world, state, shared)):
        files |= entries
    agree(lambda: _commit(unfinished, final, world, shared, files) if world.is_first else None)
    return final, sum(entry.size for entry in files.values())


@dataclass(frozen=True)
class _Agreement:
    """Runs an act on every rank and lets all of them fail when one does."""

    world: World
    unfinished: Path

    def __call__(self, act: Callable[[], Any]) -> list[Any]:
        """All ranks' results. A rank that failed for no reason of its disk raises its own error, for the
        traceback; the others raise a MegatuneError with its words."""
        own: Exception | None = None
        answer: tuple[str | None, bool, Any] = (None, False, None)
        try:
            answer = (None, False, act())
        except Exception as error:  # whatever it is, the others must not wait for this rank
            own, is_disk = error, isinstance(error, (OSError, SaveError))
            kind = "" if is_disk or isinstance(error, CheckpointError) else f"{type(error).__name__}: "
            answer = (f"rank {self.world.rank}: {kind}{error}", is_disk, None)
        answers = self.world.gather_objects(answer)
        problems = [(words, is_disk) for words, is_disk, _ in answers if words]
        if not problems:
            return [result for _, _, result in answers]
        left = self.world.first_rank(self._clean_up)
        if own is not None and not isinstance(own, (OSError, CheckpointError)):
            raise own
        kind_of_error = SaveError if all(is_disk for _, is_disk in problems) else CheckpointError
        raise kind_of_error(
            "the checkpoint could not be saved; older ones are untouched. "
            + " ".join(words for words, _ in problems)
            + left
        )

    def _clean_up(self) -> str:
        """Give the space back at once; a disk that does not let us is one more thing to tell."""
        try:
            if self.unfinished.exists():
                shutil.rmtree(self.unfinished)
        except OSError as error:
            return f" {self.unfinished} could not be removed: {error.strerror}."
        return ""


def _num_bytes_of_finite(state: RankState) -> int:
    """Bytes of the state. Raises CheckpointError when a weight is NaN or infinite: nobody can go on from that."""
    for name, piece in state.tensors[WEIGHT].items():
        # NaN and infinities come through minimum and maximum, without a mask as large as the piece.
        if piece.numel() and not all(bool(torch.isfinite(bound)) for bound in torch.aminmax(piece)):
            raise CheckpointError(f"{name} holds values that are not finite; this is never saved.")
    return sum(piece.nbytes for pieces in state.tensors.values() for piece in pieces.values())


def _prepare(unfinished: Path, needed: int) -> None:
    if unfinished.exists():
        shutil.rmtree(unfinished)  # ours: an earlier save of this step was cut off
    unfinished.mkdir(parents=True)
    free = shutil.disk_usage(unfinished).free
    if free < needed:
        raise SaveError(
            f"{unfinished.parent} has {format_bytes(free)} free and a checkpoint needs {format_bytes(needed)}."
            " Free space, lower checkpoint.save_total_limit, or set train.output_dir to a larger disk."
        )


def _write_rank(folder: Path, world: World, state: RankState, shared: Shared) -> dict[str, FileEntry]:
    name = rank_file(world.rank, "safetensors")
    tensors = {f"{kind}/{key}": piece for kind, held in state.tensors.items() for key, piece in held.items()}
    written = {name: write_tensor_file(folder / name, tensors | rng_tensors(world.device))}
    texts: dict[str, Json] = {rank_file(world.rank, "json"): {**state.scalars, "rng": rng_scalars()}}
    if world.is_first:
        texts |= {TRAINING: shared.training, WEIGHTS: shared.weights}
        (folder / MODEL_FOLDER).mkdir()
        shared.write_model(folder / MODEL_FOLDER)
        for path in sorted((folder / MODEL_FOLDER).iterdir()):
            written[path.relative_to(folder).as_posix()] = _sync_and_hash(path)
    for text_name, value in texts.items():
        content = json.dumps(value, indent=1, allow_nan=False).encode()
        written[text_name] = _write_bytes(folder / text_name, content)
    return written


def _write_bytes(path: Path, content: bytes) -> FileEntry:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size=len(content), xxh3_128=xxhash.xxh3_128(content).hexdigest())


def _sync_and_hash(path: Path) -> FileEntry:
    """Force a file that others wrote to the disk, and hash it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        content = file.read()
    return FileEntry(size=len(content), xxh3_128=xxhash.xxh3_128(content).hexdigest())


def _commit(unfinished: Path, final: Path, world: World, shared: Shared, files: dict[str, FileEntry]) -> None:
    manifest = Manifest(
        step=shared.step,
        layout=layout_of(world, shared.accumulation),
        files=files,
        versions={package: version(package) for package in _PACKAGES},
        config_hash=shared.config_hash,
        data=shared.data,
        kept_for_ever=shared.kept_for_ever,
    )
    _write_bytes(unfinished / MANIFEST, render_manifest(manifest))
    sync_folder(unfinished / MODEL_FOLDER)
    sync_folder(unfinished)
    put_in_place(unfinished, final)
