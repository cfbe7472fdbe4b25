"""What a rank itself takes for a step, without its waiting for others: only this tells which rank is slow.

Ranks go in step, so that all of them take as long as the slowest. Between two collectives they do not.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch._C._distributed_c10d import Work  # the handle of every collective, synchronous ones included

_real_wait = Work.wait
_waited_s = 0.0


@contextmanager
def counted_as_waiting() -> Iterator[None]:
    """What the block takes is waiting for others."""
    global _waited_s
    started = time.perf_counter()
    try:
        yield
    finally:
        _waited_s += time.perf_counter() - started


def _timed_wait(work: Work, *args: Any, **kwargs: Any) -> bool:
    with counted_as_waiting():
        return _real_wait(work, *args, **kwargs)


class StepTimes(NamedTuple):
    """Seconds of one rank and one step."""

    own_s: float
    """Without waiting for others."""
    step_s: float


class OwnTime:
    """A clock that stands while this process waits in a collective.

    On a CPU. On a GPU collectives run beside Python, which waits for none: there the clock counts the time
    until the rows of the step are ready, and no more.
    """

    def __init__(self, device: torch.device) -> None:
        Work.wait = _timed_wait  # type: ignore[assignment,method-assign]
        self._sees_waits = device.type == "cpu"
        self._rows_s = 0.0
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self._started, self._waited_before_s = time.perf_counter(), _waited_s

    def rows_are_ready(self) -> None:
        """The rows of the step have been read."""
        self._rows_s = time.perf_counter() - self._started

    def taken(self) -> StepTimes:
        """Of this step, so far."""
        step_s = time.perf_counter() - self._started
        waited_s = _waited_s - self._waited_before_s
        return StepTimes(step_s - waited_s if self._sees_waits else self._rows_s, step_s)
