"""What a rank does in the parity tests: the same optimizer steps on whatever layout it is part of."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny_models import VOCABULARY

from megatune.config import BatchShape, Run
from megatune.engine.accelerator import own_device
from megatune.engine.base import TrainingEngine
from megatune.engine.dtypes import DTYPES
from megatune.engine.make import make_engine
from megatune.engine.plain import PlainEngine
from megatune.engine.start import enter
from megatune.engine.world import World, make_world, single_world
from megatune.launch.ranks import discover_rank
from megatune.model.build import build_model
from megatune.model.source import open_source
from megatune.plan.ds_config import make_ds_config

SEQUENCES, TOKENS = 8, 24


@dataclass
class Tokens:
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor


def tiny_run(folder: str, tp: int = 1, **changes: Any) -> Run:
    """A run file in memory: `changes` are sections' entries, `{"train": {...}}`."""
    sections: dict[str, Any] = {
        "model": {"model_name_or_path": folder},
        "data": {"train": "unused.jsonl"},
        "train": {"output_dir": "unused", "optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.1},
        "parallel": {"tp_size": tp},
        "precision": "fp32",
    }
    for key, value in changes.items():
        sections[key] = {**sections.get(key, {}), **value} if isinstance(value, dict) else value
    return Run.model_validate(sections)


@cache
def world_of(tp: int) -> World:
    """This rank's world at degree `tp`; joins the process group at the first call.

    Kept: every gloo group has threads that wake all the time, and a rank lives for all tests.
    """
    return make_world(tp, entered())


def entered() -> torch.device:
    """This rank's device, once it is in the process group."""
    if dist.is_initialized():
        return own_device()
    rank = discover_rank()
    assert rank is not None
    return enter(rank, timeout_s=120)


def zero_engine(run: Run, world: World, *, micro: int = 1, accumulation: int = 1) -> TrainingEngine:
    """The real engine on the model folder of `run`."""
    batch = BatchShape(
        micro=micro, accumulation=accumulation, global_sequences=micro * accumulation * world.data_parallel
    )
    source = open_source(Path(run.model.model_name_or_path))
    return make_engine(run, source, world, make_ds_config(run, batch))


def plain_engine(run: Run, device: torch.device | None = None) -> PlainEngine:
    """The reference on the same model folder; on the CPU unless a device is given."""
    source = open_source(Path(run.model.model_name_or_path))
    return PlainEngine(build_model(source, dtype=DTYPES[run.precision]), single_world(device), run.train)


def batches(steps: int) -> list[Tokens]:
    """The same global batches on every rank; about 40 % of the positions have no target."""
    generator = torch.Generator().manual_seed(1)
    shape = (SEQUENCES, TOKENS)
    found = []
    for _ in range(steps):
        ids = torch.randint(0, VOCABULARY, shape, generator=generator)
        labels = torch.randint(0, VOCABULARY, shape, generator=generator)
        labels[torch.rand(shape, generator=generator) < 0.4] = -100
        found.append(Tokens(ids, torch.arange(TOKENS).expand(shape), labels))
    return found


def run_steps(
    engine: Any, steps: list[Tokens], *, accumulation: int, learning_rate: float
) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of optimizer steps whose loss is the mean over all target tokens."""
    world, losses, norms = engine.world, [], []
    rows = SEQUENCES // world.data_parallel // accumulation
    for step in steps:
        targets = (step.labels != -100).sum()
        total = torch.zeros((), device=world.device)
        for index in range(accumulation):
            first = (index * world.data_parallel + world.data_rank) * rows
            part = slice(first, first + rows)
            loss = (
                engine.loss(Tokens(step.input_ids[part], step.position_ids[part], step.labels[part]))
                / targets
            )
            engine.backward(loss, is_last=index == accumulation - 1)
            total += loss.detach()
        norms.append(engine.step(learning_rate).grad_norm)
        losses.append(world.sum_over_data(total).item())
    return losses, norms


def train_traces(folders: dict[str, str], tp: int, dp: int, steps: int) -> dict[tuple[str, int, int], Any]:
    """Train every model of `folders` at (tp, dp); (0, 0) is the plain reference. Traces from rank 0."""
    found: dict[tuple[str, int, int], Any] = {}
    for name, folder in folders.items():
        run = tiny_run(folder, max(1, tp))
        engine = plain_engine(run) if tp == 0 else zero_engine(run, world_of(tp), micro=SEQUENCES // dp)
        losses, norms = run_steps(engine, batches(steps), accumulation=1, learning_rate=0.1)
        weights = {key: value.numpy() for key, value in engine.weights(master=True)}
        if engine.world.is_first:
            found[name, tp, dp] = (losses, norms, {key: value.copy() for key, value in weights.items()})
    return found
