"""Where each rank is: one small file a rank, overwritten in place at every change of phase.

A beat costs one pwrite of 256 bytes. Readers compare what they see with what they saw before, so the
clocks of the nodes need not agree.
"""

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from megatune.launch.flight_recorder import forget_traces

RECORD_BYTES = 256
SLOW_PHASES = frozenset({"load", "first step", "save", "export"})
"""In these a healthy rank may show nothing for longer: twice the limit."""
ENDED = "ended"
"""The phase of a rank that will not beat any more."""
_LOOKS_PER_LIMIT = 10
_LONGEST_PAUSE_S = 10.0
_ORDER = (
    "load",
    "first step",
    "data",
    "forward and backward",
    "optimizer step",
    "eval",
    "save",
    "export",
    "wait",
    ENDED,
)


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a rank wrote last."""

    rank: int
    host: str
    pid: int
    step: int
    """The step it works on; the first is 1, and 0 is before it."""
    phase: str
    number: int
    """Beats since it started."""
    time_s: float
    """Seconds since 1970, by the rank's clock."""

    @property
    def progress(self) -> tuple[int, int]:
        """Beats and phase: of ranks that do the same, the one with less has fallen behind."""
        order = _ORDER.index(self.phase) if self.phase in _ORDER else len(_ORDER)
        return self.number, order

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}: step {self.step}, {self.phase}"


class Heart:
    """Writes the beats of one rank. Raises OSError when the file cannot be made or written."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._rank, self._host, self._pid = rank, socket.gethostname()[:64], os.getpid()
        self._number = 0
        self._step = 0
        self._file = os.open(beat_path(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.beaten_at = time.monotonic()
        self.phase = "load"
        self.beat("load")

    def beat(self, phase: str, step: int | None = None) -> None:
        """Now in `phase` of `step` (that of the last beat when None)."""
        self._number += 1
        self._step = self._step if step is None else step
        self.phase, self.beaten_at = phase, time.monotonic()
        beat = Beat(
            rank=self._rank,
            host=self._host,
            pid=self._pid,
            step=self._step,
            phase=phase,
            number=self._number,
            time_s=round(time.time(), 3),
        )
        os.pwrite(self._file, json.dumps(asdict(beat)).encode().ljust(RECORD_BYTES - 1) + b"\n", 0)

    def close(self) -> None:
        """The rank has nothing more to do, and nobody need wait for a beat."""
        if self.phase != ENDED:
            self.beat(ENDED)
            os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def beat_path(folder: Path, rank: int) -> Path:
    """`heartbeats/rank-00003.json` for rank 3."""
    return folder / f"rank-{rank:05d}.json"


def read_beat(folder: Path, rank: int) -> Beat | None:
    """The rank's last beat; None before its first, or while one is half written."""
    try:
        return Beat(**json.loads(beat_path(folder, rank).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def read_beats(folder: Path, num_ranks: int) -> list[Beat]:
    """The last beats of all ranks that have one."""
    found = (read_beat(folder, rank) for rank in range(num_ranks))
    return [beat for beat in found if beat is not None]


def forget_beats(folder: Path) -> None:
    """Take away the beats of an earlier start."""
    for path in folder.glob("rank-*"):
        path.unlink(missing_ok=True)
    forget_traces(folder)


class StillnessWatch:
    """Tells when a rank has shown no beat for longer than it may."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._seen: dict[int, tuple[Beat, float]] = {}

    def still(self, beats: Sequence[Beat], now_s: float) -> list[Beat]:
        """The ranks whose beats are overdue at `now_s` (monotonic seconds of the caller)."""
        overdue = []
        for beat in beats:
            seen = self._seen.get(beat.rank)
            if seen is None or seen[0] != beat:
                self._seen[beat.rank] = (beat, now_s)
            elif beat.phase != ENDED and now_s - seen[1] > limit_of(beat.phase, self.limit_s):
                overdue.append(beat)
        return overdue


def pause_of(limit_s: float) -> float:
    """Seconds between two looks at beats that may stand still for `limit_s`."""
    return min(limit_s / _LOOKS_PER_LIMIT, _LONGEST_PAUSE_S)


def limit_of(phase: str, limit_s: float) -> float:
    """Seconds that a rank may show nothing in `phase`."""
    return 2 * limit_s if phase in SLOW_PHASES else limit_s
