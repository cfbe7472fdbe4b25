"""A checkpoint as a plain Hugging Face folder: sharded safetensors, config.json, tokenizer.

Works on one CPU process without a process group. Memory: one whole tensor in fp32, and a second one for
a weight that is transposed (GPT-2's); neither the model's size nor `shard_bytes` counts.
"""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from megatune.checkpoint.layout import BUFFERS, MODEL_FOLDER, read_json
from megatune.checkpoint.stream import TensorFile, TensorPlan, split_files
from megatune.checkpoint.whole import WholeTensors
from megatune.engine.state import WEIGHT
from megatune.errors import CheckpointError, ExportError
from megatune.files import sync_folder
from megatune.units import format_bytes

SHARD_BYTES = 5 * 10**9
"""Size of one output file: what people expect of hub folders (transformers' own default is 50 GB)."""
WHOLE = "model.safetensors"


def export_checkpoint(
    checkpoint: Path, target: Path, *, dtype: torch.dtype, shard_bytes: int = SHARD_BYTES, verify: bool = True
) -> int:
    """Write `target`; returns the number of parameters in it. Buffers keep their dtypes.

    `verify` checks the rank files against the manifest's hashes first. Written beside the target and
    renamed, and re-opened and counted before that. Raises ExportError for a target that is there already
    and CheckpointError for anything else that fails; then nothing is left behind.
    """
    if target.exists():
        raise ExportError(f"{target} is already there; give another folder or remove it first.")
    whole = WholeTensors(checkpoint, verify=verify)
    buffers = _buffers(checkpoint)
    plan = {name: TensorPlan(tuple(value.shape), value.dtype) for name, value in buffers.items()}
    plan |= {name: TensorPlan(shape, dtype) for name, shape in whole.shapes.items()}
    unfinished = target.with_name(target.name + ".tmp")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    try:
        shutil.copytree(checkpoint / MODEL_FOLDER, unfinished)
        (unfinished / BUFFERS).unlink(missing_ok=True)
        _write_shards(whole, buffers, unfinished, plan, shard_bytes)
        _write_dtype(unfinished, dtype)
        count = _count(unfinished, plan) - sum(value.numel() for value in buffers.values())
        sync_folder(unfinished)
        unfinished.rename(target)
        sync_folder(target.absolute().parent)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)  # before the free space is counted
        raise CheckpointError(_why_not_written(target, error, plan, dtype)) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # gone when it has become the target
    return count


def _buffers(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Those of the model, the widest elements first: the format wants tensors aligned."""
    path = checkpoint / MODEL_FOLDER / BUFFERS
    found = load_file(path) if path.exists() else {}
    return dict(sorted(found.items(), key=lambda item: -item[1].element_size()))


def _why_not_written(target: Path, error: OSError, plan: Mapping[str, TensorPlan], dtype: torch.dtype) -> str:
    needed = sum(tensor.num_bytes for tensor in plan.values())
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


def _write_shards(
    whole: WholeTensors,
    buffers: Mapping[str, torch.Tensor],
    folder: Path,
    plan: Mapping[str, TensorPlan],
    shard_bytes: int,
) -> None:
    """Files under the hub's names: one `model.safetensors`, or several with an index beside them."""
    shards = split_files({name: tensor.num_bytes for name, tensor in plan.items()}, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else WHOLE
        weight_map |= dict.fromkeys(names, file)
        with TensorFile(folder / file, {name: plan[name] for name in names}) as shard:
            for name in names:
                shard.add(name, [buffers[name] if name in buffers else whole.read(WEIGHT, name)])
    if len(shards) > 1:
        total = sum(tensor.num_bytes for tensor in plan.values())
        listing = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / f"{WHOLE}.index.json").write_text(json.dumps(listing, indent=2), encoding="utf-8")


def _write_dtype(folder: Path, dtype: torch.dtype) -> None:
    path = folder / "config.json"
    config = read_json(path)
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _count(folder: Path, plan: Mapping[str, TensorPlan]) -> int:
    """Parameters found by opening the folder again. Raises CheckpointError unless all are there as planned."""
    found: dict[str, tuple[int, ...]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    expected = {name: tensor.shape for name, tensor in plan.items()}
    if found != expected:
        odd = sorted(name for name in found | expected if found.get(name) != expected.get(name))
        raise CheckpointError(
            f"{folder}: {len(odd)} of {len(expected)} weights are not as planned, e.g. {', '.join(odd[:3])}."
        )
    return sum(math.prod(shape) for shape in found.values())
