"""A checkpoint of a few hundred megabytes without a model: as its files are laid out, for tests that weigh."""

import json
from pathlib import Path

import torch

from megatune.checkpoint.layout import MODEL_FOLDER, TRAINING, WEIGHTS, Layout, rank_file
from megatune.checkpoint.manifest import FileEntry, Manifest, render_manifest
from megatune.checkpoint.reshard import Placement
from megatune.checkpoint.stream import TensorFile, TensorPlan
from megatune.checkpoint.weights_index import WeightEntry
from megatune.files import hash_file
from megatune.launch.checkpoints import MANIFEST
from megatune.plan.shards import Cut, Segment

_SIDE = 3072
_COUNT = 9
LARGEST_BYTES = 4 * _SIDE * _SIDE
MODEL_BYTES = _COUNT * LARGEST_BYTES
_LAYOUT = Layout(data_parallel=2, tensor_parallel=2)


def write_large_checkpoint(folder: Path, model: Path) -> Path:
    """Square weights at dp=2 x tp=2: row-cut, column-cut, whole, and each of those transposed too."""
    step = folder / "step-00000001"
    (step / MODEL_FOLDER).mkdir(parents=True)
    (step / MODEL_FOLDER / "config.json").write_bytes((model / "config.json").read_bytes())
    cuts = [None, *(Cut(dim=dim, segments=(Segment(_SIDE, 1),)) for dim in (0, 1))]
    entries = {
        f"layer.{index}.weight": WeightEntry(
            shape=(_SIDE, _SIDE), cut=cuts[index % 3], transposed=index % 2 == 1
        )
        for index in range(_COUNT)
    }
    for rank in range(_LAYOUT.num_ranks):
        _write_rank(step, rank, entries)
    (step / TRAINING).write_text("{}")
    (step / WEIGHTS).write_text(json.dumps({name: entry.to_json() for name, entry in entries.items()}))
    files = {
        path.relative_to(step).as_posix(): FileEntry(size=path.stat().st_size, xxh3_128=hash_file(path))
        for path in step.rglob("*")
        if path.is_file()
    }
    manifest = Manifest(step=1, layout=_LAYOUT, files=files, versions={}, config_hash="", data={})
    (step / MANIFEST).write_bytes(render_manifest(manifest))
    return step


def _write_rank(step: Path, rank: int, entries: dict[str, WeightEntry]) -> None:
    ranges = {
        name: Placement(entry.shape, entry.cut, _LAYOUT).piece_range(rank) for name, entry in entries.items()
    }
    plan = {
        f"weight/{name}": TensorPlan((stop - start,), torch.float32) for name, (start, stop) in ranges.items()
    }
    with TensorFile(step / rank_file(rank, "safetensors"), plan) as file:
        for name, (start, stop) in ranges.items():
            file.add(f"weight/{name}", [torch.arange(start, stop, dtype=torch.float32)])
    (step / rank_file(rank, "json")).write_text("{}")
