"""What ranks do in the chain over layouts: train, stopped after some steps, and write down which rows came in each."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash
from tiny_runs import train

from megatune.data.batches import Batch
from megatune.launch.ranks import discover_rank
from megatune.tasks.labels import IGNORED
from megatune.train import loop


def _hashes(batches: Sequence[Batch]) -> list[str]:
    """Of each row, without padding, which depends on the rows beside it; rows of padding alone are none."""
    found = []
    for batch in batches:
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
            targets = (labels != IGNORED).nonzero()
            if len(targets):
                found.append(xxhash.xxh3_64(ids[: int(targets[-1]) + 2].numpy().tobytes()).hexdigest())
    return found


def train_noting_rows(run_file: str, overrides: Sequence[str], rows: str, stop_in: int | None) -> int:
    """`train`; the last rank gets a SIGTERM while it reads the rows of its step number `stop_in`.

    rows: folder; the first rank of each tensor-parallel group writes the place in the data and a hash of
    each row.
    """
    info = discover_rank()
    assert info is not None
    original, calls = loop.step_batches, 0

    def step_batches(prepared: Any, position: Any, **how: Any) -> Any:
        nonlocal calls
        calls += 1
        batches = original(prepared, position, **how)
        if info.rank % (info.world_size // how["data_parallel"]) == 0:
            line = {"at": [position.epoch, position.cursor], "rows": _hashes(batches)}
            with (Path(rows) / f"rank-{info.rank}").open("a") as file:
                file.write(json.dumps(line) + "\n")
        if calls == stop_in and info.rank == info.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches

    loop.step_batches = step_batches
    try:
        return train(run_file, list(overrides))
    finally:
        loop.step_batches = original
