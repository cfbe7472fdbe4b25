"""Runs in a job that is about to end, on the ranks of a test world."""

import os
import signal
import time
from typing import Any

from tiny_runs import train

from megatune.launch.time_limit import JobEnd


def train_with_seconds_left(run_file: str, overrides: list[str], seconds: int) -> int:
    """`train` in an allocation that ends `seconds` from now."""
    os.environ["SLURM_JOB_END_TIME"] = str(int(time.time()) + seconds)
    try:
        return train(run_file, overrides)
    finally:
        del os.environ["SLURM_JOB_END_TIME"]


def train_until_five_seconds_are_left(run_file: str, overrides: list[str], look: int) -> int:
    """`train` in an allocation that is found to end in 5 s at that look, and in hours before."""
    from megatune.train import rank

    class Ending(JobEnd):
        looks = 0

        def seconds_left(self) -> float | None:
            self.looks += 1
            return super().seconds_left() if self.looks < look else 5.0

    rank.JobEnd = Ending  # type: ignore[misc]
    try:
        return train_with_seconds_left(run_file, overrides, 36_000)
    finally:
        rank.JobEnd = JobEnd  # type: ignore[misc]


def train_with_signal_in_evaluation(run_file: str, overrides: list[str], rank: int, evaluation: int) -> int:
    """`train` where `rank` alone gets SIGUSR2 once the evaluation of that number has begun."""
    from megatune.train.evaluating import Evaluations

    original, begun = Evaluations.score, 0

    def score(self: Evaluations, *args: Any, **kwargs: Any) -> Any:
        nonlocal begun
        begun += 1
        if (int(os.environ["RANK"]), begun) == (rank, evaluation):
            os.kill(os.getpid(), signal.SIGUSR2)
        return original(self, *args, **kwargs)

    Evaluations.score = score  # type: ignore[method-assign]
    try:
        return train(run_file, overrides)
    finally:
        Evaluations.score = original  # type: ignore[method-assign]
