"""Ranks that the others wait for, step after step: named with their host, so that somebody can look at it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from megatune.config.health import HealthSection
from megatune.engine.own_time import StepTimes
from megatune.report.records import SlowRankRecord

_WINDOWS_IN_A_ROW = 3  # a disk or a neighbour that is busy for a moment is no news
_LEAST_SHARE = 0.1
"""Of the time of a step: what a rank takes longer must be worth looking at."""


@dataclass(frozen=True)
class SlowRank:
    """One rank of one window of steps."""

    rank: int
    own_s: float
    """What it takes itself for a step, on average."""
    others_s: float
    """The median of the others."""


def slow_ranks(own_s: Sequence[float], step_s: float, factor: float) -> list[SlowRank]:
    """The ranks that take more than `factor` times what the others take, and hold up steps of `step_s` by it.

    >>> [found.rank for found in slow_ranks([1.0, 1.1, 2.0, 0.9], step_s=2.2, factor=1.5)]
    [2]
    """
    found = []
    for rank, seconds in enumerate(own_s):
        others = [*own_s[:rank], *own_s[rank + 1 :]]
        median_s = statistics.median(others) if others else seconds
        if seconds > factor * median_s and seconds - median_s > _LEAST_SHARE * step_s:
            found.append(SlowRank(rank, seconds, median_s))
    return found


class SlowRanks:
    """Takes in what each rank has taken for each step; the same on all ranks."""

    def __init__(self, health: HealthSection, hosts: Sequence[str]) -> None:
        """hosts: of each rank."""
        self._factor, self._window, self._hosts = health.slow_rank_factor, health.slow_rank_window, hosts
        self._own_s = [0.0] * len(hosts)
        self._step_s = 0.0
        self._num_steps = 0
        self._in_a_row = [0] * len(hosts)

    def stepped(self, step: int, times: Sequence[StepTimes]) -> list[SlowRankRecord]:
        """What there is to tell after a step: each rank that has just been slow for three windows in a row."""
        if not self._factor or len(self._hosts) == 1:
            return []
        self._own_s = [total + time.own_s for total, time in zip(self._own_s, times, strict=True)]
        self._step_s += max(time.step_s for time in times)
        self._num_steps += 1
        return self._judged(step) if self._num_steps == self._window else []

    def _judged(self, step: int) -> list[SlowRankRecord]:
        own_s, step_s = [total / self._num_steps for total in self._own_s], self._step_s / self._num_steps
        slow = {found.rank: found for found in slow_ranks(own_s, step_s, self._factor)}
        self._in_a_row = [(count + 1) * (rank in slow) for rank, count in enumerate(self._in_a_row)]
        self._own_s, self._step_s, self._num_steps = [0.0] * len(self._hosts), 0.0, 0
        return [
            SlowRankRecord(
                step=step,
                rank=rank,
                host=self._hosts[rank],
                own_seconds=found.own_s,
                others_seconds=found.others_s,
                step_seconds=step_s,
                num_steps=_WINDOWS_IN_A_ROW * self._window,
            )
            for rank, found in slow.items()
            if self._in_a_row[rank] == _WINDOWS_IN_A_ROW
        ]


def words_of(record: SlowRankRecord) -> str:
    """The record as a line for people."""
    return (
        f"WARNING, rank {record.rank} on {record.host} is slow: in the last {record.num_steps} steps it took "
        f"{record.own_seconds:.3g} s of its own for one, the others {record.others_seconds:.3g} s, and they wait for "
        f"it in every step of {record.step_seconds:.3g} s"
    )
