"""Ranks of one host wait for each other by counters in memory that they share, and sleep in the kernel meanwhile.

A barrier of gloo is several messages through sockets. Here each rank counts its own meetings, and waits for the
counters of the others by futex(2).
"""

import ctypes
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from megatune.engine.own_time import counted_as_waiting

LINE_BYTES = 64
"""Of the shared memory, for each rank: one line of a processor's cache."""
_SYS_FUTEX = {"x86_64": 202}
"""Only where stores are seen by others in the order they were made: elsewhere fences would be needed."""
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_EVERYBODY = 2**31 - 1
_SPINS = 100
"""Looks before a rank sleeps, some ten microseconds: ranks in step are nearly always there by then."""
_LOOK_AFTER_S = 1
"""Whether a rank that has not come still runs is looked at after each of these."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def can_meet() -> bool:
    """Whether this machine has what a Meeting needs."""
    return platform.system() == "Linux" and platform.machine() in _SYS_FUTEX


class Meeting:
    """One rank's side of it. `lines`: uint8 of size `LINE_BYTES` a rank, zeros, the same memory on all ranks.

    Every rank makes one before any of them meets.
    """

    def __init__(self, lines: torch.Tensor, *, rank: int, size: int, timeout_s: float) -> None:
        self._lines, self._rank, self._timeout_s = lines, rank, timeout_s
        self._others = [other for other in range(size) if other != rank]
        words = lines.numpy().view(np.uint32).reshape(size, -1)
        self._counters, self._pids = words[:, 0], words[:, 1]
        self._pids[rank] = os.getpid()
        self._count = 0
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._number = _SYS_FUTEX[platform.machine()]

    def meet(self) -> None:
        """Wait for all ranks: what they have written before is there for all afterwards. Collective.

        Raises RuntimeError when a rank has ended, or has not come in time.
        """
        self._count = (self._count + 1) % 2**32
        self._counters[self._rank] = self._count
        self._futex(self._rank, _FUTEX_WAKE, _EVERYBODY, None)
        for other in self._others:
            if not any(self._has_come(other) for _ in range(_SPINS)):
                with counted_as_waiting():
                    self._sleep_until_it_comes(other)

    def _has_come(self, other: int) -> bool:
        return (int(self._counters[other]) - self._count) % 2**32 < 2**31

    def _sleep_until_it_comes(self, other: int) -> None:
        limit = time.monotonic() + self._timeout_s
        while True:
            # Read before the question: what comes in between ends the sleep at once.
            seen = int(self._counters[other])
            if self._has_come(other):
                return
            self._futex(other, _FUTEX_WAIT, seen, _Timespec(_LOOK_AFTER_S, 0))
            if self._has_come(other):
                return
            if not _is_running(int(self._pids[other])):
                raise RuntimeError(
                    f"connection closed by peer: rank {other} of a group of one host has ended"
                )
            if time.monotonic() > limit:
                raise RuntimeError(
                    f"timed out waiting {self._timeout_s:g} s for rank {other} of a group of one host"
                )

    def _futex(self, rank: int, operation: int, value: int, timeout: _Timespec | None) -> None:
        """Sleep or wake at a rank's counter. Its answer says no more than the counters do."""
        self._syscall(
            ctypes.c_long(self._number),
            ctypes.c_void_p(self._lines.data_ptr() + rank * LINE_BYTES),
            ctypes.c_int(operation),
            ctypes.c_uint(value),
            None if timeout is None else ctypes.byref(timeout),
            None,
            ctypes.c_int(0),
        )


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")
