"""Write another program's training state as a checkpoint of megatune. Memory: a few times its largest tensor."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from megatune.checkpoint.convert.foreign import ForeignState
from megatune.checkpoint.convert.generators import scalars_of, tensors_of
from megatune.checkpoint.convert.target_model import TargetModel, match_names
from megatune.checkpoint.folders import put_in_place
from megatune.checkpoint.layout import MODEL_FOLDER, TRAINING, WEIGHTS, Layout, rank_file
from megatune.checkpoint.manifest import FileEntry, Manifest, render_manifest
from megatune.checkpoint.stream import TensorFile, TensorPlan
from megatune.engine.state import WEIGHT
from megatune.errors import CheckpointError, ConvertError
from megatune.files import hash_file, sync_folder
from megatune.launch.checkpoints import MANIFEST, folder_name
from megatune.units import format_bytes

_PACKAGES = ("megatune", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What goes into the files that all ranks share."""

    training: Mapping[str, Any]
    """`training.json`."""
    config_hash: str
    thaw: bool = False
    """Take parameters that were not trained too, with zero moments."""


def write_megatune(state: ForeignState, model: TargetModel, checkpoints: Path, shared: Shared) -> Path:
    """Write `checkpoints/step-N`; returns it.

    Raises ConvertError before anything is written when a parameter is missing, unknown, of another shape or
    was frozen (without `thaw`), and CheckpointError when the disk refuses; then nothing is left behind.
    """
    facts = state.facts
    if facts.frozen and not shared.thaw:
        raise ConvertError(
            f"{facts.folder}: {len(facts.frozen)} parameters were not trained and have no optimizer state: "
            f"{', '.join(list(facts.frozen)[:5])}. megatune trains all parameters. --thaw gives them zero moments, "
            "with which their first updates are larger than those of a fresh start (up to 3 times with Adam's "
            "default betas)."
        )
    names = match_names({**facts.shapes, **facts.frozen}, model, facts.folder)
    final = checkpoints / folder_name(facts.step)
    if final.exists():
        raise ConvertError(f"{final} is already there; give another TARGET or remove it first.")
    unfinished = final.with_suffix(".tmp")
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)  # ours: an earlier conversion was cut off
        unfinished.mkdir(parents=True)
        _check_space(state, unfinished)
        _write(state, model, names, unfinished, shared)
        put_in_place(unfinished, final)
    except OSError as error:
        raise CheckpointError(f"{final} could not be written: {error}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # gone when it has become `final`
    return final


def _check_space(state: ForeignState, folder: Path) -> None:
    facts = state.facts
    shapes = [*facts.shapes.values(), *facts.frozen.values()]
    needed = 4 * len(facts.kinds) * sum(math.prod(shape) for shape in shapes)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder.parent} has {format_bytes(free)} free and the checkpoint needs {format_bytes(needed)}. Free "
            "space, or give a TARGET on a larger disk."
        )


def _write(
    state: ForeignState, model: TargetModel, names: Mapping[str, str], folder: Path, shared: Shared
) -> None:
    facts = state.facts
    layout = Layout(data_parallel=facts.data_parallel, tensor_parallel=1)
    files = _write_tensors(state, model, names, folder, layout)
    scalars = {"optimizer": dict(facts.counters), "loss_scale": dict(facts.loss_scale)}
    texts: dict[str, Any] = {
        TRAINING: shared.training,
        WEIGHTS: {name: entry.to_json() for name, entry in model.entries().items()},
        **{rank_file(rank, "json"): scalars | {"rng": scalars_of(rank)} for rank in range(layout.num_ranks)},
    }
    for name, value in texts.items():
        (folder / name).write_text(json.dumps(value, indent=1, allow_nan=False), encoding="utf-8")
    (folder / MODEL_FOLDER).mkdir()
    model.copy_files(folder / MODEL_FOLDER)
    for path in [*(folder / name for name in texts), *(folder / MODEL_FOLDER).iterdir()]:
        _sync(path)
        files[path.relative_to(folder).as_posix()] = FileEntry(
            size=path.stat().st_size, xxh3_128=hash_file(path)
        )
    manifest = Manifest(
        step=facts.step,
        layout=layout,
        files=files,
        versions={package: version(package) for package in _PACKAGES},
        config_hash=shared.config_hash,
        data={"epoch": 0, "cursor": 0},
    )
    (folder / MANIFEST).write_bytes(render_manifest(manifest))
    _sync(folder / MANIFEST)
    sync_folder(folder / MODEL_FOLDER)
    sync_folder(folder)


def _write_tensors(
    state: ForeignState, model: TargetModel, names: Mapping[str, str], folder: Path, layout: Layout
) -> dict[str, FileEntry]:
    """All ranks' tensor files at once, so that every tensor is read once."""
    entries, kinds = model.entries(), state.facts.kinds
    placements = {name: entry.placement(layout) for name, entry in entries.items()}
    with ExitStack() as stack:
        files = []
        for rank in range(layout.num_ranks):
            plan = {}
            for kind in kinds:
                for name, placement in placements.items():
                    start, stop = placement.piece_range(rank)
                    plan[f"{kind}/{name}"] = TensorPlan((stop - start,), torch.float32)
            plan |= {
                name: TensorPlan(tuple(held.shape), held.dtype) for name, held in tensors_of(rank).items()
            }
            path = folder / rank_file(rank, "safetensors")
            files.append(stack.enter_context(TensorFile(path, plan)))
        for kind in kinds:
            for name, placement in placements.items():
                flat = _oriented(
                    _read(state, kind, names[name]), model.shapes[name], entries[name].transposed
                )
                for rank, file in enumerate(files):
                    start, stop = placement.piece_range(rank)
                    file.add(f"{kind}/{name}", [flat[start:stop]])
        for rank, file in enumerate(files):
            for name, generator in tensors_of(rank).items():
                file.add(name, [generator])
    return {rank_file(rank, "safetensors"): file.entry for rank, file in enumerate(files)}


def _read(state: ForeignState, kind: str, name: str) -> torch.Tensor:
    if name in state.facts.frozen:
        weight = state.read_frozen(name)
        return weight if kind == WEIGHT else torch.zeros_like(weight)
    found = state.read(kind, name)
    if kind == WEIGHT and not torch.isfinite(found).all():
        raise ConvertError(f"{state.facts.folder}: {name} holds values that are not finite.")
    return found


def _oriented(flat: torch.Tensor, shape: tuple[int, ...], transposed: bool) -> torch.Tensor:
    """The flat tensor as the model computes with it."""
    return flat.view(shape).t().contiguous().view(-1) if transposed else flat


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
