"""Say how far the preparing is: rows, rows a second, and how long it will take."""

import sys
import time
from typing import Protocol

from megatune.units import format_count, format_duration


class Progress(Protocol):
    """Who is told how far the preparing is."""

    def begin(self, num_bytes: int, num_workers: int) -> None:
        """The work begins on files of so many bytes."""

    def update(self, num_rows: int, num_bytes: int) -> None:
        """So many rows are tokenised, and so many bytes of the files are behind us."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def end(self) -> None:
        """All rows are tokenised."""


class Silent:
    """Tells nobody."""

    def begin(self, num_bytes: int, num_workers: int) -> None:
        """Nothing is told."""

    def update(self, num_rows: int, num_bytes: int) -> None:
        """Nothing is told."""

    def note(self, text: str) -> None:
        """Nothing is told."""

    def end(self) -> None:
        """Nothing is told."""


SILENT = Silent()


class Spoken:
    """Tells on standard error: a line that changes in place on a terminal, a line now and then in a log."""

    def __init__(self, split: str, *, every_s: float = 5.0) -> None:
        self._split = split
        self._is_terminal = sys.stderr.isatty()
        self._every_s = min(every_s, 0.2) if self._is_terminal else every_s
        self._total_bytes = 0
        self._num_rows = 0
        self._has_spoken = False
        self._begun = self._said = time.monotonic()

    def begin(self, num_bytes: int, num_workers: int) -> None:
        """The clock starts."""
        self._total_bytes, self._num_rows = num_bytes, 0
        self._begun = self._said = time.monotonic()
        if num_workers > 1:
            self.note(f"tokenising with {num_workers} processes")

    def update(self, num_rows: int, num_bytes: int) -> None:
        """Says it, when it is time."""
        self._num_rows = num_rows
        now = time.monotonic()
        if now - self._said < self._every_s:
            return
        self._said = now
        spent_s = now - self._begun
        text = f"{format_count(num_rows)} rows, {num_rows / spent_s:.0f} a second"
        if 0 < num_bytes <= self._total_bytes:
            left_s = spent_s * (self._total_bytes - num_bytes) / num_bytes
            text += f", {num_bytes / self._total_bytes:.0%}, about {format_duration(left_s)} left"
        self._say(text)

    def note(self, text: str) -> None:
        """Says it on a line of its own."""
        self._end_line()
        print(f"megatune: {self._split}: {text}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Sums up work that took long enough to be told of."""
        self._end_line()
        spent_s = time.monotonic() - self._begun
        if spent_s >= self._every_s and self._num_rows:
            rate = f"{self._num_rows / spent_s:.0f} a second"
            self.note(f"tokenised {format_count(self._num_rows)} rows in {format_duration(spent_s)}, {rate}")

    def _say(self, text: str) -> None:
        line = f"megatune: preparing {self._split}: {text}"
        if self._is_terminal:
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
            self._has_spoken = True
        else:
            print(line, file=sys.stderr, flush=True)

    def _end_line(self) -> None:
        if self._has_spoken:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._has_spoken = False
