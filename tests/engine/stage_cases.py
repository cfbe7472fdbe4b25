"""What ranks do in the tests of ZeRO stages."""

from typing import Any

import torch
from parity_steps import SEQUENCES, Tokens, batches, tiny_run, world_of, zero_engine

from megatune.engine.base import StepOutcome, TrainingEngine
from megatune.engine.partitioning import expected_partitioning, partitioning
from megatune.engine.zero import ZeroEngine


def _engine(folder: str, stage: int, precision: str) -> TrainingEngine:
    run = tiny_run(folder, 2, precision=precision, parallel={"zero_stage": stage})
    world = world_of(2)
    return zero_engine(run, world, micro=SEQUENCES // world.data_parallel)


def describe(folder: str, stage: int, precision: str) -> dict[str, Any]:
    """How an engine calls itself, and the other stages that its tensors could be taken for."""
    engine = _engine(folder, stage, precision)
    taken_for = []
    if isinstance(engine, ZeroEngine):
        parameters = list(engine.built.model.parameters())
        found = partitioning(engine._engine.optimizer, parameters, engine.world.data_parallel)
        taken_for = [other for other in (1, 2, 3) if other != stage and expected_partitioning(other) == found]
    return {"description": engine.description, "found_as_another_stage": taken_for}


def left_out(folder: str, stage: int, precision: str) -> dict[str, Any]:
    """A step, one left out, a step; beside the two steps alone."""
    first, bad, last = batches(3)
    engine, other = _engine(folder, stage, precision), _engine(folder, stage, precision)
    _step(engine, first)
    before = _masters(engine)
    outcomes = [_step(engine, bad, leave_out=True)]
    after = _masters(engine)
    outcomes.append(_step(engine, last))
    for tokens in (first, last):
        _step(other, tokens)
    expected, reached = _masters(other), _masters(engine)
    return {
        "outcomes": [(outcome.skipped, outcome.grad_norm is None) for outcome in outcomes],
        "moved by the step left out": [k for k, v in before.items() if not torch.equal(v, after[k])],
        "differs from a run without it": [k for k, v in expected.items() if not torch.equal(v, reached[k])],
    }


def _step(engine: TrainingEngine, tokens: Tokens, *, leave_out: bool = False) -> StepOutcome:
    rows = SEQUENCES // engine.world.data_parallel
    part = slice(engine.world.data_rank * rows, (engine.world.data_rank + 1) * rows)
    loss = engine.loss(Tokens(tokens.input_ids[part], tokens.position_ids[part], tokens.labels[part]))
    engine.backward(loss / (tokens.labels != -100).sum(), is_last=True)
    return engine.step(0.05, leave_out=leave_out)


def _masters(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in engine.weights(master=True)}
