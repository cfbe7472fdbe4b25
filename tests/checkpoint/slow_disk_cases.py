"""What ranks do in the tests of slow disks: train with the first rank's lines in a file."""

import os
import time
from pathlib import Path
from typing import Any

from tiny_runs import train

from megatune.checkpoint import write
from megatune.launch.ranks import discover_rank, rank_log_environment

PAUSE_S = 0.6


def train_logged(run_file: str, overrides: list[str], log: str, slow_step: int | None = None) -> int:
    """`train`. The tensors of the checkpoint of `slow_step` are written in pieces, with a pause before each."""
    info = discover_rank()
    assert info is not None
    real = write.write_tensor_file

    def write_tensor_file(path: Path, tensors: Any, *, on_written: Any, **how: Any) -> Any:
        if path.parent.name == f"step-{slow_step:08d}.tmp" if slow_step else False:
            for _ in range(5):
                time.sleep(PAUSE_S)
                on_written(1)
        return real(path, tensors, on_written=on_written, **how)

    if info.rank == 0:
        os.environ.update(rank_log_environment(Path(log)))
    write.write_tensor_file = write_tensor_file  # type: ignore[assignment]
    try:
        return train(run_file, overrides)
    finally:
        write.write_tensor_file = real
        for name in rank_log_environment(Path(log)):
            os.environ.pop(name, None)
