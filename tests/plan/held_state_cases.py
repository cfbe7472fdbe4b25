"""What ranks do in the tests of the ledger's states: one real step, then every tensor is weighed."""

import os
from typing import Any

from parity_steps import SEQUENCES, batches, tiny_run, world_of, zero_engine

from megatune.checkpoint.snapshot import HostCopy
from megatune.engine.accounting import HeldBytes, num_bytes
from megatune.engine.base import TrainingEngine


def held_bytes(
    folder: str, tp: int, precision: str, optimizer: str, offload: str, stage: int, extensions: str
) -> HeldBytes | None:
    """What the engine of this rank holds after one step."""
    engine = engine_after_a_step(folder, tp, precision, optimizer, offload, stage, extensions)
    return engine.held_bytes()


def snapshot_bytes(
    folder: str, tp: int, precision: str, optimizer: str, offload: str, stage: int, extensions: str
) -> int:
    """What a copy of this rank's state for a save behind training holds."""
    engine = engine_after_a_step(folder, tp, precision, optimizer, offload, stage, extensions)
    copied = HostCopy().of(engine.state())
    return num_bytes(piece for held in copied.tensors.values() for piece in held.values())


def engine_after_a_step(
    folder: str, tp: int, precision: str, optimizer: str, offload: str, stage: int, extensions: str
) -> TrainingEngine:
    """The engine of this rank when the optimizer has its moments; with the compiled Adam of `extensions`."""
    os.environ["TORCH_EXTENSIONS_DIR"] = extensions
    settings: dict[str, Any] = {
        "train": {"optimizer": optimizer, "momentum": 0.0},
        "parallel": {"tp_size": tp, "offload": offload, "zero_stage": stage},
    }
    world = world_of(tp)
    run = tiny_run(folder, tp, precision=precision, **settings)
    engine = zero_engine(run, world, micro=SEQUENCES // world.data_parallel)
    (tokens,) = batches(1)
    assert engine.held_bytes() is None, "before a step nobody knows the optimizer's moments"
    engine.backward(engine.loss(tokens), is_last=True)
    engine.step(0.1)
    return engine
