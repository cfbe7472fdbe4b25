"""Save a checkpoint so that it is either whole under its final name or not there at all.

The order is the protocol: everything is written into `step-N.tmp`, synced, listed with sizes and
hashes in a manifest, and only then renamed. `in_flight` says who does what when.
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
from megatune.checkpoint.layout import MODEL_FOLDER, TRAINING, WEIGHTS, rank_file
from megatune.checkpoint.manifest import FileEntry, Manifest, render_manifest
from megatune.checkpoint.read import layout_of
from megatune.checkpoint.rng import rng_scalars, rng_tensors
from megatune.checkpoint.stream import write_tensor_file
from megatune.engine.state import WEIGHT, RankState
from megatune.engine.world import World
from megatune.errors import CheckpointError, SaveError
from megatune.files import make_folder, sync_folder
from megatune.launch.checkpoints import MANIFEST
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


@dataclass(frozen=True)
class Generators:
    """The random generators of a process at one moment, as its files hold them."""

    tensors: dict[str, torch.Tensor]
    scalars: Json

    @classmethod
    def now(cls, device: torch.device) -> "Generators":
        """As they are; copies."""
        return cls(rng_tensors(device), {"rng": rng_scalars()})


def refuse_not_finite(state: RankState) -> None:
    """Raises CheckpointError when a weight is NaN or infinite: nobody can go on from that."""
    for name, piece in state.tensors[WEIGHT].items():
        # NaN and infinities come through minimum and maximum, without a mask as large as the piece.
        if piece.numel() and not all(bool(torch.isfinite(bound)) for bound in torch.aminmax(piece)):
            raise CheckpointError(f"{name} holds values that are not finite; this is never saved.")


def make_room(unfinished: Path, needed: int) -> None:
    """An empty folder to write into. Raises SaveError when the disk has fewer than `needed` bytes free."""
    if unfinished.exists():
        shutil.rmtree(unfinished)  # ours: an earlier save of this step was cut off
    make_folder(unfinished)
    free = shutil.disk_usage(unfinished).free
    if free < needed:
        raise SaveError(
            f"{unfinished.parent} has {format_bytes(free)} free and a checkpoint needs {format_bytes(needed)}."
            " Free space, lower checkpoint.save_total_limit, or set train.output_dir to a larger disk."
        )


def write_rank(
    folder: Path,
    rank: int,
    state: RankState,
    generators: Generators,
    shared: Shared,
    on_written: Callable[[int], None],
) -> dict[str, FileEntry]:
    """Write and sync this rank's files, and those of all on the first rank. Raises OSError.

    on_written: told the bytes of each block of tensors once the system has taken it.
    """
    name = rank_file(rank, "safetensors")
    pieces = {f"{kind}/{key}": piece for kind, held in state.tensors.items() for key, piece in held.items()}
    tensors = pieces | generators.tensors
    written = {name: write_tensor_file(folder / name, tensors, on_written=on_written)}
    texts: dict[str, Json] = {rank_file(rank, "json"): {**state.scalars, **generators.scalars}}
    if rank == 0:
        texts |= {TRAINING: shared.training, WEIGHTS: shared.weights}
        (folder / MODEL_FOLDER).mkdir()
        shared.write_model(folder / MODEL_FOLDER)
        for path in sorted((folder / MODEL_FOLDER).iterdir()):
            written[path.relative_to(folder).as_posix()] = _sync_and_hash(path)
    for text_name, value in texts.items():
        content = json.dumps(value, indent=1, allow_nan=False).encode()
        written[text_name] = _write_bytes(folder / text_name, content)
    return written


def commit(
    unfinished: Path, final: Path, world: World, shared: Shared, files: Mapping[str, FileEntry]
) -> None:
    """First rank, once all ranks' files are on the disk: list them, and give the folder its name."""
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
