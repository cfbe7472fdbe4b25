"""What ranks do in the tests of offload to a disk."""

import os
from pathlib import Path
from typing import Any

import torch
from parity_steps import SEQUENCES, batches, run_steps, tiny_run, world_of
from state_cases import load, save

from megatune.config import BatchShape
from megatune.engine.zero import ZeroEngine
from megatune.errors import MegatuneError
from megatune.model.source import open_source
from megatune.plan.ds_config import make_ds_config

RATE = 1e-3
GROUP_ELEMENTS = 20_000
"""Of a sub-group: the tiny model has several on each rank."""


def disk_engine(folder: str, tp: int, offload: str, extensions: str) -> ZeroEngine:
    """The engine of a tiny model in several sub-groups, two micro-batches a step."""
    os.environ["TORCH_EXTENSIONS_DIR"] = extensions
    world = world_of(tp)
    train = {"optimizer": "adamw", "weight_decay": 0.1, "learning_rate": RATE}
    run = tiny_run(folder, tp, train=train, parallel={"offload": offload})
    micro = SEQUENCES // world.data_parallel // 2
    batch = BatchShape(micro=micro, accumulation=2, global_sequences=SEQUENCES)
    policy = {"zero_optimization": {"sub_group_size": GROUP_ELEMENTS}}
    return ZeroEngine(run, open_source(Path(folder)), world, make_ds_config(run, batch, policy))


def train_save_and_go_on(
    folder: str, tp: int, offload: str, target: str, sources: list[str], extensions: str
) -> dict[str, Any]:
    """Two steps, a checkpoint, two more; then those two again from the checkpoint and from each of `sources`."""
    engine = disk_engine(folder, tp, offload, extensions)
    steps = batches(4)
    first = _steps(engine, steps[:2])
    saved = str(save(engine, Path(target), 2))
    traces = [_steps(engine, steps[2:])]
    for source in (saved, *sources):
        load(engine, Path(source))
        traces.append(_steps(engine, steps[2:]))
    states = engine._engine.optimizer.fp32_partitioned_groups_flat
    return {
        "first": first,
        "saved": saved,
        "traces": traces,
        "weights": {name: value.numpy().copy() for name, value in engine.weights(master=True)},
        "groups": len(states),
        "state_bytes": 12 * sum(state.numel() for state in states),
        "held": engine.held_bytes(),
    }


def step_on_a_disk_that_fails(folder: str, path: str, extensions: str) -> str:
    """The words of a step whose disk refuses what is written."""
    engine = disk_engine(folder, 1, f"nvme:{path}", extensions)
    steps = batches(3)
    _steps(engine, steps[:1])

    def refuse(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    usual, os.fdatasync = os.fdatasync, refuse
    try:
        _steps(engine, steps[1:])
    except MegatuneError as error:
        return str(error)
    finally:
        os.fdatasync = usual
    return "no error"


def _steps(engine: ZeroEngine, steps: list[Any]) -> tuple[list[float], list[float]]:
    torch.set_num_threads(1)
    return run_steps(engine, steps, accumulation=2, learning_rate=RATE)
