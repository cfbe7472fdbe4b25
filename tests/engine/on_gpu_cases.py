"""What ranks do in the tests of GPUs on a machine without one."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from deepspeed.utils import timer
from parity_steps import SEQUENCES, batches, run_steps, tiny_run, world_of, zero_engine

from megatune.config import BatchShape
from megatune.engine import take_over, zero
from megatune.engine.zero import ZeroEngine, _build
from megatune.model.source import open_source
from megatune.plan.ds_config import make_ds_config


def buffers_on_another_device(folder: str) -> dict[str, tuple[str, bool]]:
    """For each buffer of a model under stage 3 its device, and whether a state dict would hold it; the ranks'
    device is one that weights are not on."""
    run, batch = tiny_run(folder), BatchShape(micro=1, accumulation=1, global_sequences=1)
    world = replace(world_of(1), device=torch.device("meta"))
    ds_config = make_ds_config(run, batch)
    model = _build(run, open_source(Path(folder)), world, ds_config, widen_bf16=False).model
    kept = model.state_dict().keys()
    return {name: (buffer.device.type, name in kept) for name, buffer in model.named_buffers()}


def waits_of_the_timer(folder: str, accumulation: int) -> int:
    """How often DeepSpeed's timer waits for the device in four steps; it begins with the third."""
    waits: list[None] = []
    accelerator = SimpleNamespace(
        synchronize=lambda: waits.append(None), memory_allocated=int, max_memory_allocated=int
    )
    engine = zero_engine(
        tiny_run(folder), world_of(1), micro=SEQUENCES // accumulation, accumulation=accumulation
    )
    with mock.patch.object(timer, "get_accelerator", lambda: accelerator):
        run_steps(engine, batches(4), accumulation=accumulation, learning_rate=0.1)
    return len(waits)


def train_alone(folder: str, tp: int, settings: dict[str, Any], extensions: str) -> dict[str, dict[str, Any]]:
    """Three steps of two micro-batches with one data-parallel rank, as DeepSpeed adds gradients up and as megatune
    does on a GPU. extensions: the folder with the compiled Adam."""
    os.environ["TORCH_EXTENSIONS_DIR"] = extensions
    return {way: _train_alone(folder, way, tp, settings) for way in ("DeepSpeed", "megatune")}


def _train_alone(folder: str, way: str, tp: int, settings: dict[str, Any]) -> dict[str, Any]:
    take = take_over.take_over

    def as_on_a_gpu(optimizer: Any, parameters: Any, run: Any, world: Any, ds_config: Any) -> Any:
        return take(optimizer, parameters, run, replace(world, device=torch.device("cuda", 0)), ds_config)

    keep = take_over.keep_own_gradients if way == "megatune" else lambda _: None
    with (
        mock.patch.object(zero, "take_over", as_on_a_gpu),
        mock.patch.object(take_over, "keep_own_gradients", keep),
    ):
        run = tiny_run(folder, tp, **settings)
        engine = zero_engine(run, world_of(tp), micro=SEQUENCES // 2, accumulation=2)
    assert isinstance(engine, ZeroEngine)
    losses, norms = run_steps(engine, batches(3), accumulation=2, learning_rate=0.1)
    return {
        "losses": losses,
        "norms": norms,
        "weights": {name: weight.float().numpy().copy() for name, weight in engine.weights(master=True)},
        "has_bucket": any(
            bucket.buffer is not None for bucket in engine._engine.optimizer.ipg_buckets.values()
        ),
    }
