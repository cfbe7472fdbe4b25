"""What ranks do in the tests of saves that fail on one of them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from parity_steps import SEQUENCES, tiny_run, world_of, zero_engine
from state_cases import save
from tiny_runs import train_failing

from megatune.checkpoint import write
from megatune.engine.state import RankState
from megatune.engine.zero import ZeroEngine
from megatune.errors import CheckpointError
from megatune.launch.ranks import discover_rank


def _refusing(error_number: int, is_due: Callable[[Path], bool]) -> Callable[..., Any]:
    """The writer of tensor files, with a disk that breaks half-way through those that are due."""
    real = write.write_tensor_file

    def write_tensor_file(path: Path, tensors: Any, **how: Any) -> Any:
        if not is_due(path):
            return real(path, tensors, **how)
        path.write_bytes(b"half of a file")
        raise OSError(error_number, os.strerror(error_number), str(path))

    return write_tensor_file


def save_on_bad_disks(folder: str, checkpoints: str, error_numbers: list[int], bad_rank: int) -> list[str]:
    """The words of each failed save on this rank: one for each error number, on a disk of `bad_rank`."""
    world = world_of(2)
    engine = zero_engine(tiny_run(folder, 2), world, micro=SEQUENCES // world.data_parallel)
    real, found = write.write_tensor_file, []
    for number in error_numbers:
        write.write_tensor_file = _refusing(number, lambda _: world.rank == bad_rank)
        try:
            found.append(_words_of_save(engine, Path(checkpoints)))
        finally:
            write.write_tensor_file = real
    found.append(_words_of_save(engine, Path(checkpoints)))
    return found


def save_with_a_spoilt_weight(folder: str, checkpoints: str, value: float, bad_rank: int) -> str:
    """The words of a save whose state holds `value` once, on `bad_rank`."""
    world = world_of(2)
    engine = zero_engine(tiny_run(folder, 2), world, micro=SEQUENCES // world.data_parallel)
    if world.rank == bad_rank:
        state: RankState = engine.state()
        with torch.no_grad():
            state.tensors["weight"]["model.norm.weight"][-1] = value
    return _words_of_save(engine, Path(checkpoints))


def _words_of_save(engine: ZeroEngine, checkpoints: Path) -> str:
    try:
        return f"saved {save(engine, checkpoints, 2).name}"
    except CheckpointError as error:
        return f"{type(error).__name__}: {error}"


def train_on_a_bad_disk(
    run_file: str, overrides: list[str], error_number: int, bad_rank: int, step: int
) -> str:
    """How a run ends on this rank whose disk refuses the checkpoint of `step` on `bad_rank`."""
    info = discover_rank()
    assert info is not None
    rank, real = info.rank, write.write_tensor_file
    write.write_tensor_file = _refusing(
        error_number, lambda path: rank == bad_rank and path.parent.name == f"step-{step:08d}.tmp"
    )
    try:
        return train_failing(run_file, overrides)
    finally:
        write.write_tensor_file = real
