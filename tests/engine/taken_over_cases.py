"""Training with and without what megatune does in DeepSpeed's place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from parity_steps import SEQUENCES, batches, run_steps, tiny_run, world_of, zero_engine

from megatune.engine import live_weights, shared_gradients
from megatune.engine.shared_memory import share

WAYS = ("DeepSpeed", "kept and shared", "kept and sent", "shared gradients only")


@contextmanager
def without_shared_memory(kept: bool, gradients: bool) -> Iterator[None]:
    """As on several hosts: there the ranks get none, for weights or for gradients."""

    def refuse(*_: object) -> None:
        return None

    with (
        mock.patch.object(live_weights, "share", share if kept else refuse),
        mock.patch.object(shared_gradients, "share", share if gradients else refuse),
    ):
        yield


def train(folder: str, way: str, precision: str, tp: int, accumulation: int) -> dict[str, Any]:
    """Five steps, an evaluation after the second; what was trained, and the engine's own words."""
    run = tiny_run(
        folder,
        tp,
        precision=precision,
        parallel={"keep_gathered": way in ("kept and shared", "kept and sent")},
    )
    world = world_of(tp)
    micro = SEQUENCES // world.data_parallel // accumulation
    with without_shared_memory(
        kept=way == "kept and shared", gradients=way in ("kept and shared", "shared gradients only")
    ):
        engine = zero_engine(run, world, micro=micro, accumulation=accumulation)
    losses, norms = run_steps(engine, batches(2), accumulation=accumulation, learning_rate=0.1)
    with engine.evaluating():
        evaluated = engine.loss(batches(1)[0]).item()
    more = run_steps(engine, batches(3), accumulation=accumulation, learning_rate=0.1)
    return {
        "losses": [*losses, evaluated, *more[0]],
        "norms": [*norms, *more[1]],
        "weights": {name: weight.float().numpy() for name, weight in engine.weights()},
        "description": engine.description,
    }


def train_in_all_ways(folder: str, precision: str, tp: int, accumulation: int) -> dict[str, dict[str, Any]]:
    return {way: train(folder, way, precision, tp, accumulation) for way in WAYS}


def see_what_others_write() -> tuple[bool, bool, int]:
    """Write on one rank and read on the others; then ask for memory with a process that may not open files."""
    world = world_of(1)
    assert world.data_group is not None
    shared = share(4096, world.data_group)
    if shared is None:
        return False, False, 0
    if world.is_first:
        shared.memory[17] = 5
    shared.meet()
    seen = int(shared.memory[17])
    with mock.patch("os.open", side_effect=PermissionError) if world.rank == 1 else _as_it_is():
        refused = share(4096, world.data_group) is None
    return True, refused, seen


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one.keys() == other.keys()
    return max(
        float((torch.from_numpy(one[name]) - torch.from_numpy(other[name])).abs().max()) for name in one
    )
