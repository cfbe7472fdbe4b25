"""What ranks do in the tests of the ledger's states: one real step, then every tensor is weighed."""

from typing import Any

from parity_steps import SEQUENCES, batches, tiny_run, world_of, zero_engine

from megatune.engine.accounting import HeldBytes


def held_bytes(
    folder: str, tp: int, precision: str, optimizer: str, offload: str, stage: int
) -> HeldBytes | None:
    """What the engine of this rank holds after one step."""
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
    return engine.held_bytes()
