"""What ranks do in the sweep over all stops: train, write down which rows came, be stopped at a chosen place."""

import os
import signal
from pathlib import Path
from typing import Any

import xxhash
from tiny_runs import train

from megatune.data.loader import StepLoader
from megatune.data.sampler import Position
from megatune.engine.zero import ZeroEngine
from megatune.launch.ranks import discover_rank

LOADING, ACCUMULATING = "loading", "accumulating"


def train_stopped(
    run_file: str, overrides: list[str], samples: str, stop: tuple[int, str] | None = None, starts: int = 1
) -> list[int]:
    """Exit codes of up to `starts` starts, one after another, until one has finished the run.

    samples: folder; each rank appends a hash of every batch it trains on to a file of its own.
    stop: (rank that gets a SIGTERM in the first step of each start, while it loads the rows or between
    two micro-batches of the step).
    """
    info = discover_rank()
    assert info is not None
    codes: list[int] = []
    originals = StepLoader.take, ZeroEngine.backward
    stopped = False

    def stop_at(moment: str) -> None:
        nonlocal stopped
        if stop == (info.rank, moment) and not stopped:
            stopped = True
            os.kill(os.getpid(), signal.SIGTERM)

    def take(self: StepLoader, position: Position) -> Any:
        batches = originals[0](self, position)
        digest = xxhash.xxh3_64(b"".join(batch.input_ids.numpy().tobytes() for batch in batches))
        with (Path(samples) / f"rank-{info.rank}").open("a") as file:
            file.write(digest.hexdigest() + "\n")
        stop_at(LOADING)
        return batches

    def backward(self: ZeroEngine, loss: Any, *, is_last: bool) -> None:
        originals[1](self, loss, is_last=is_last)
        if not is_last:
            stop_at(ACCUMULATING)

    StepLoader.take, ZeroEngine.backward = take, backward  # type: ignore[method-assign]
    try:
        while len(codes) < starts and 0 not in codes:
            stopped = False
            codes.append(train(run_file, overrides))
        return codes
    finally:
        StepLoader.take, ZeroEngine.backward = originals  # type: ignore[method-assign]
