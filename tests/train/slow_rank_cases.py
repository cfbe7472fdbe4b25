"""Runs of which one rank is really slow: it sleeps where it reads its rows, or where it computes."""

import time
from typing import Any

from tiny_runs import train

from megatune.engine.zero import ZeroEngine
from megatune.launch.ranks import discover_rank
from megatune.train import loop

ROWS, COMPUTING = "rows", "computing"


def train_with_a_slow_rank(run_file: str, overrides: list[str], slow: int, place: str, seconds: float) -> int:
    """`train`, where rank `slow` takes `seconds` longer for each step at that place."""
    info = discover_rank()
    assert info is not None
    originals = loop.step_batches, ZeroEngine.step

    def step_batches(*args: Any, **kwargs: Any) -> Any:
        if info.rank == slow and place == ROWS:
            time.sleep(seconds)
        return originals[0](*args, **kwargs)

    def step(self: ZeroEngine, *args: Any, **kwargs: Any) -> Any:
        if info.rank == slow and place == COMPUTING:
            time.sleep(seconds)
        return originals[1](self, *args, **kwargs)

    loop.step_batches, ZeroEngine.step = step_batches, step  # type: ignore[method-assign]
    try:
        return train(run_file, overrides)
    finally:
        loop.step_batches, ZeroEngine.step = originals  # type: ignore[method-assign]
