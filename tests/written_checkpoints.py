"""Whole checkpoints of any layout, written without any engine: every tensor is known in advance."""

import json
import math
from pathlib import Path

import torch
import xxhash

from megatune.checkpoint.layout import TRAINING, WEIGHTS, Layout, rank_file
from megatune.checkpoint.manifest import FileEntry, Manifest, render_manifest
from megatune.checkpoint.rng import rng_scalars, rng_tensors
from megatune.checkpoint.stream import write_tensor_file
from megatune.checkpoint.weights_index import WeightEntry
from megatune.launch.checkpoints import MANIFEST, folder_name
from megatune.plan.shards import Cut, Segment

KINDS = ("weight", "exp_avg", "exp_avg_sq")
ONE_RANK = Layout(data_parallel=1, tensor_parallel=1)
SMALL = {
    "fused": WeightEntry(shape=(30, 4), cut=Cut(dim=0, segments=(Segment(5, 2),) * 3), transposed=False),
    "row": WeightEntry(shape=(6, 10), cut=Cut(dim=1, segments=(Segment(5, 2),)), transposed=True),
    "norm": WeightEntry(shape=(8,), cut=None, transposed=False),
}


def whole(kind: str, name: str, weights: dict[str, WeightEntry]) -> torch.Tensor:
    """The whole flattened tensor: another number in every place."""
    number = KINDS.index(kind) * len(weights) + list(weights).index(name)
    return torch.arange(math.prod(weights[name].shape), dtype=torch.float32) + 1000 * number


def piece(kind: str, name: str, weights: dict[str, WeightEntry], layout: Layout, rank: int) -> torch.Tensor:
    """What a rank of `layout` holds of it."""
    place = weights[name].placement(layout)
    flat = whole(kind, name, weights)
    return torch.cat([flat[:0], *(flat[start:stop] for start, stop in place.whole_intervals(rank))])


def write_checkpoint(
    checkpoints: Path,
    step: int,
    *,
    layout: Layout = ONE_RANK,
    weights: dict[str, WeightEntry] = SMALL,
    best_step: int | None = None,
    kept_for_ever: bool = False,
) -> Path:
    """A whole checkpoint; the step is in its bytes, so two steps' files differ."""
    folder = checkpoints / folder_name(step)
    (folder / "model").mkdir(parents=True)
    texts = {
        "model/config.json": {"model_type": "gpt2"},
        TRAINING: {"state": {"step": step, "best_step": best_step}, "identity": {}},
        WEIGHTS: {name: entry.to_json() for name, entry in weights.items()},
    }
    files: dict[str, FileEntry] = {}
    for rank in range(layout.num_ranks):
        name = rank_file(rank, "safetensors")
        held = {f"{kind}/{key}": piece(kind, key, weights, layout, rank) for kind in KINDS for key in weights}
        held["weight/norm"] = held.get("weight/norm", torch.zeros(0)) + step
        files[name] = write_tensor_file(folder / name, held | rng_tensors(torch.device("cpu")))
        scalars = {"optimizer": {"step": {"value": float(step)}}, "loss_scale": {}}
        texts[rank_file(rank, "json")] = {**scalars, "rng": rng_scalars()}
    for name, value in texts.items():
        content = json.dumps(value).encode()
        (folder / name).write_bytes(content)
        files[name] = FileEntry(size=len(content), xxh3_128=xxhash.xxh3_128(content).hexdigest())
    manifest = Manifest(
        step=step,
        layout=layout,
        files=files,
        versions={"megatune": "0"},
        config_hash="",
        data={"epoch": 0, "cursor": step},
        kept_for_ever=kept_for_ever,
    )
    (folder / MANIFEST).write_bytes(render_manifest(manifest))
    return folder
