"""What ranks do in the tests of GPUs on a machine without one."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from deepspeed.utils import timer
from parity_steps import SEQUENCES, batches, run_steps, tiny_run, world_of, zero_engine

from megatune.config import BatchShape
from megatune.engine.zero import _build
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
