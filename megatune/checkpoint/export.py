"""A checkpoint as a plain Hugging Face folder: sharded safetensors, config.json, tokenizer.

Works on one CPU process without a process group: pieces are read out of the rank files one
parameter at a time, so memory is bounded by one output file.
"""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open

from megatune.checkpoint.layout import (
    MODEL_FOLDER,
    WEIGHTS,
    Layout,
    rank_file,
    read_json,
)
from megatune.checkpoint.manifest import read_manifest, why_incomplete
from megatune.checkpoint.tensors import save_tensors
from megatune.checkpoint.verify import check_file
from megatune.checkpoint.weights_index import WeightEntry
from megatune.engine.state import WEIGHT
from megatune.errors import CheckpointError, ExportError
from megatune.model.shares import join_parts, part_shape
from megatune.units import format_bytes

SHARD_BYTES = 5 * 10**9
"""Size of one output file: what people expect of hub folders (transformers' own default is 50 GB)."""


def export_checkpoint(
    checkpoint: Path, target: Path, *, dtype: torch.dtype, shard_bytes: int = SHARD_BYTES, verify: bool = True
) -> int:
    """Write `target`; returns the number of parameters in it.

    `verify` checks the rank files against the manifest's hashes first. Written beside the target and
    renamed, and re-opened and counted before that. Raises ExportError for a target that is there already
    and CheckpointError for anything else that fails; then nothing is left behind.
    """
    reason = why_incomplete(checkpoint)
    if reason:
        raise CheckpointError(f"{checkpoint} is not a whole checkpoint: {reason}.")
    if target.exists():
        raise ExportError(f"{target} is already there; give another folder or remove it first.")
    manifest = read_manifest(checkpoint)
    if verify:
        for name in manifest.files:
            check_file(checkpoint, name, manifest)
    entries = {
        name: WeightEntry.from_json(stored) for name, stored in read_json(checkpoint / WEIGHTS).items()
    }
    unfinished = target.with_name(target.name + ".tmp")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    try:
        shutil.copytree(checkpoint / MODEL_FOLDER, unfinished)
        weights = whole_weights(checkpoint, manifest.layout, entries)
        _write_shards(((name, tensor.to(dtype)) for name, tensor in weights), unfinished, shard_bytes)
        _write_dtype(unfinished, dtype)
        count = _count(unfinished, entries)
        unfinished.rename(target)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)  # before the free space is counted
        raise CheckpointError(_why_not_written(target, error, entries, dtype)) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # gone when it has become the target
    return count


def _why_not_written(
    target: Path, error: OSError, entries: dict[str, WeightEntry], dtype: torch.dtype
) -> str:
    needed = sum(math.prod(entry.shape) for entry in entries.values()) * dtype.itemsize
    place = next(folder for folder in target.absolute().parents if folder.exists())
    return (
        f"{target} could not be written: {error}. {place} has {format_bytes(shutil.disk_usage(place).free)} free, "
        f"the weights need {format_bytes(needed)} in {str(dtype).removeprefix('torch.')}. "
        "Free space, or export to a folder on a larger disk: megatune export RUN TARGET."
    )


def replace_export(checkpoint: Path, target: Path, *, dtype: torch.dtype) -> None:
    """Export to `target`, taking the place of an earlier export there once the new one is whole."""
    fresh = target.with_name(target.name + ".new")
    if fresh.exists():
        shutil.rmtree(fresh)
    export_checkpoint(checkpoint, fresh, dtype=dtype, verify=False)
    if target.exists():
        shutil.rmtree(target)
    fresh.rename(target)


def whole_weights(
    checkpoint: Path, layout: Layout, entries: dict[str, WeightEntry], kind: str = WEIGHT
) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole fp32 tensors of `kind`, by parameter name, joined from the ranks' pieces."""
    with ExitStack() as stack:
        files = [
            stack.enter_context(safe_open(checkpoint / rank_file(rank, "safetensors"), framework="pt"))
            for rank in range(layout.num_ranks)
        ]
        for name, entry in entries.items():
            parts = []
            for tensor_rank in range(layout.tensor_parallel if entry.cut else 1):
                owners = range(tensor_rank, layout.num_ranks, layout.tensor_parallel)
                flat = torch.cat([files[rank].get_tensor(f"{kind}/{name}") for rank in owners])
                shape = (
                    part_shape(entry.shape, entry.cut, tensor_rank, layout.tensor_parallel)
                    if entry.cut
                    else entry.shape
                )
                parts.append(flat[: math.prod(shape)].view(shape))
            whole = join_parts(parts, entry.cut) if entry.cut else parts[0]
            yield name, whole.t() if entry.transposed else whole


def _write_shards(weights: Iterator[tuple[str, torch.Tensor]], folder: Path, shard_bytes: int) -> None:
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    total = 0

    def flush() -> None:
        save_tensors(pending, folder / f"shard-{len(shards)}")
        shards.append(list(pending))
        pending.clear()

    for name, tensor in weights:
        held = sum(value.nbytes for value in pending.values())
        if pending and held + tensor.nbytes > shard_bytes:
            flush()
        pending[name] = tensor
        total += tensor.nbytes
    flush()
    _name_shards(folder, shards, total)


def _name_shards(folder: Path, shards: list[list[str]], total_bytes: int) -> None:
    """The hub's names: one file `model.safetensors`, several with an index beside them."""
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{index}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    listing = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listing, indent=2), encoding="utf-8")


def _write_dtype(folder: Path, dtype: torch.dtype) -> None:
    path = folder / "config.json"
    config = read_json(path)
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _count(folder: Path, entries: dict[str, WeightEntry]) -> int:
    """Parameters found by opening the folder again. Raises CheckpointError unless all are there."""
    found: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    expected = {name: math.prod(entry.shape) for name, entry in entries.items()}
    if found != expected:
        raise CheckpointError(f"{folder}: {len(found)} weights were written, {len(expected)} were expected.")
    return sum(found.values())
