"""What ranks do in the tests of the engine's options: dropout, fp16, offload."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from parity_steps import SEQUENCES, Tokens, batches, tiny_run, world_of, zero_engine
from step_cases import Case, Trace, train_cases

from megatune.engine.base import TrainingEngine
from megatune.engine.start import seed_everything
from megatune.engine.zero import ZeroEngine
from megatune.errors import ConfigError


def train_with_dropout(folder: str, equal_seeds: bool) -> dict[str, Any]:
    """Every rank trains the same batch at tp=2 x dp=2; its own losses and its replicated weights.

    `equal_seeds=False` draws differently inside a tensor-parallel group: what megatune must prevent.
    """
    world = world_of(2)
    engine = zero_engine(tiny_run(folder, 2), world, micro=SEQUENCES)
    if equal_seeds:
        seed_everything(5, world)
    else:
        torch.manual_seed(5 + world.rank)
    losses = []
    for step in batches(3):
        loss = engine.loss(step) / (step.labels != -100).sum()
        engine.backward(loss, is_last=True)
        engine.step(0.1)
        losses.append(loss.item())
    replicated = {}
    for name, parameter in engine.built.model.named_parameters():
        if name not in engine.built.cuts:
            with deepspeed.zero.GatheredParameters([parameter]):
                replicated[name] = parameter.detach().clone().numpy()
    return {"losses": losses, "replicated": replicated}


@contextmanager
def fp16_supported(answer: bool) -> Iterator[None]:
    """Have the accelerator claim or deny fp16; torch computes in it on every CPU."""
    kind = type(get_accelerator())
    before = kind.is_fp16_supported, kind.supported_dtypes
    dtypes = {torch.float32, torch.bfloat16} | ({torch.float16} if answer else set())
    kind.is_fp16_supported = lambda _: answer
    kind.supported_dtypes = lambda _: list(dtypes)
    try:
        yield
    finally:
        kind.is_fp16_supported, kind.supported_dtypes = before


def train_in_fp16(folder: str, stage: int, overflows: dict[int, int]) -> dict[str, Any]:
    """Train 4 batches in fp16. `overflows`: before batch k, so many steps with an infinite loss on one rank."""
    with fp16_supported(True):
        run = tiny_run(folder, precision="fp16", parallel={"zero_stage": stage})
        engine = zero_engine(run, world_of(1), micro=SEQUENCES // 2)
        scaler = _loss_scaler(engine)
        steps: list[dict[str, Any]] = []
        for number, tokens in enumerate(batches(4)):
            for overflow in [True] * overflows.get(number, 0) + [False]:
                before = _masters(engine)
                loss, outcome = _step(engine, tokens, overflow)
                after = _masters(engine)
                moved = any(not torch.equal(before[name], after[name]) for name in before)
                steps.append(
                    {
                        "loss": loss,
                        "norm": outcome.grad_norm,
                        "skipped": outcome.skipped,
                        "moved": moved,
                        "scale": float(scaler.cur_scale),
                    }
                )
        dtypes = {str(parameter.dtype) for parameter in engine.built.model.parameters()}
        return {"steps": steps, "weights": {k: v.numpy() for k, v in after.items()}, "dtypes": dtypes}


def refuse_fp16(folder: str) -> str:
    """The words with which a device without fp16 refuses it."""
    with fp16_supported(False):
        try:
            zero_engine(tiny_run(folder, precision="fp16"), world_of(1), micro=SEQUENCES // 2)
        except ConfigError as error:
            return str(error)
    return "no error"


def train_offloaded(
    folders: dict[str, str], cases: dict[str, Case], extensions: str
) -> dict[str, tuple[Trace, str]]:
    """`train_cases` with the compiled Adam of `extensions`."""
    os.environ["TORCH_EXTENSIONS_DIR"] = extensions
    return train_cases(folders, cases, False)


def _loss_scaler(engine: TrainingEngine) -> Any:
    return engine._engine.optimizer.loss_scaler if isinstance(engine, ZeroEngine) else engine.loss_scaler  # type: ignore[attr-defined]


def _masters(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in engine.weights(master=True)}


def _step(engine: TrainingEngine, tokens: Tokens, overflow: bool) -> tuple[float, Any]:
    world, rows = engine.world, SEQUENCES // engine.world.data_parallel
    part = slice(world.data_rank * rows, (world.data_rank + 1) * rows)
    loss = engine.loss(Tokens(tokens.input_ids[part], tokens.position_ids[part], tokens.labels[part]))
    loss = loss / (tokens.labels != -100).sum()
    # On the last rank only: all ranks must agree to skip.
    factor = float("inf") if overflow and world.rank == world.size - 1 else 1.0
    engine.backward(loss * factor, is_last=True)
    outcome = engine.step(0.05)
    return world.sum_over_data(loss.detach().clone()).item(), outcome
