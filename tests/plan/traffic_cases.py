"""What ranks do in the tests of the planned traffic: one real step whose collectives are weighed."""

from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from parity_steps import SEQUENCES, batches, run_steps, tiny_run, world_of
from torch.utils._python_dispatch import TorchDispatchMode

from megatune.config import BatchShape
from megatune.engine import live_weights, shared_gradients
from megatune.engine.make import make_engine
from megatune.model.source import open_source
from megatune.plan.ds_config import make_ds_config

_SMALL_ELEMENTS = 64
"""Norms, losses and flags."""


class Collectives(TorchDispatchMode):
    """Adds up what goes once round the ranks, in bytes: see `traffic.Pass`."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name()
        if name.startswith("c10d::"):
            largest = max(tensors_of(args), key=lambda tensor: prod(tensor.shape), default=None)
            if largest is not None and largest.numel() > _SMALL_ELEMENTS:
                times = 2 if "allreduce" in name else 1
                size = times * largest.numel() * largest.element_size()
                self.num_bytes[name] = self.num_bytes.get(name, 0) + size
        return func(*args, **kwargs or {})


def tensors_of(values: Any) -> list[torch.Tensor]:
    """Those of nested lists."""
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in tensors_of(value)]
    return []


def sent_bytes(
    folder: str, stage: int, precision: str, accumulation: int, kept: bool, reuse: int
) -> dict[str, int]:
    """Of one step after the first, by collective."""
    world = world_of(1)
    run = tiny_run(folder, precision=precision, parallel={"zero_stage": stage, "keep_gathered": kept})
    micro = SEQUENCES // world.data_parallel // accumulation
    # As on several hosts, whose ranks share no memory.
    with (
        mock.patch.object(live_weights, "share", lambda *_: None),
        mock.patch.object(shared_gradients, "share", lambda *_: None),
    ):
        config = make_ds_config(
            run, BatchShape(micro=micro, accumulation=accumulation, global_sequences=SEQUENCES)
        )
        if stage == 3:
            config["zero_optimization"] |= {
                "stage3_max_reuse_distance": reuse,
                "stage3_param_persistence_threshold": 0,
                "stage3_prefetch_bucket_size": 0,  # what it has seen ahead stays too
            }
        engine = make_engine(run, open_source(Path(folder)), world, config)
        first, second = batches(2)
        run_steps(engine, [first], accumulation=accumulation, learning_rate=0.1)
        with Collectives() as found:
            run_steps(engine, [second], accumulation=accumulation, learning_rate=0.1)
    return found.num_bytes
