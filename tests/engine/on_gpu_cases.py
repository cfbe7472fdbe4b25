"""What ranks do in the tests of GPUs on a machine without one."""

from dataclasses import replace
from pathlib import Path

import torch
from parity_steps import tiny_run, world_of

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
