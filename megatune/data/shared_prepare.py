"""Several processes tokenise the rows of one set: each its share, and one puts the parts together.

All read all rows, so that rows are counted and complained about as by one process; the tokens, which
take the time, are made once. What comes out does not depend on how many processes there are.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatune.data.arrays import map_array, write_array
from megatune.data.build import BATCH_ROWS, Counts, Share, array_writer
from megatune.data.team import Team
from megatune.data.textfiles import Row
from megatune.errors import DataError

_LENGTHS = "lengths"
_STOP = "stopped-at"

Write = Callable[[Iterable[Row], Path, Share], Counts]
"""Tokenises a share of rows into a folder."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one process made: token arrays in `folder`, and what became of its rows."""

    folder: Path
    counts: Counts
    """Without the lengths, which stand in the folder: a message of MPI holds 2 GiB at most."""


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Where and why one process could not go on."""

    num_rows: int
    """Rows it had taken."""
    while_reading: bool
    text: str


def tokenize_together(
    rows: Iterable[Row],
    scratch: Path,
    write: Write,
    team: Team,
    *,
    guard: Callable[[], AbstractContextManager[None]],
) -> list[Part]:
    """Tokenise `rows` into `scratch`, a folder that all processes see. Collective.

    guard: a block to write files in. Raises DataError on all of them, the one that a single process
    would have raised.
    """
    watched = _WatchedRows(rows, scratch / _STOP)

    def make_part() -> Part | _Problem:
        folder = scratch / f"part-{team.rank:05d}"
        try:
            with guard():
                folder.mkdir()
                counts = write(watched, folder, Share(index=team.rank, count=team.size))
                _write_lengths(folder, counts)
        except DataError as error:
            return watched.stop(str(error))
        return Part(folder=folder, counts=replace(counts, lengths=[]))

    found = team.gather(make_part)
    problems = [one for one in found if isinstance(one, _Problem)]
    if problems:
        raise DataError(min(problems, key=lambda one: (one.num_rows, one.while_reading)).text)
    return [one for one in found if isinstance(one, Part)]


def merge(parts: list[Part], made: Path) -> Counts:
    """Put the tokens of `parts` into the folder `made`, in the order of the rows; give the counts of all."""
    merged = Counts()
    opened = [_OpenPart(part) for part in parts]
    num_batches = sum(len(part.counts.batch_examples) for part in parts)
    with array_writer(made, "tokens") as tokens, array_writer(made, "is_target") as is_target:
        for number in range(num_batches):
            lengths, ids, targets = opened[number % len(parts)].next_batch()
            merged.lengths += lengths.tolist()
            tokens.append(ids)
            is_target.append(targets)
    for part in parts:
        merged.add(part.counts)
    return merged


class _WatchedRows:
    """Rows, how many were taken, and an end where another process has met a problem before."""

    def __init__(self, rows: Iterable[Row], stop: Path) -> None:
        self._rows, self._stop = iter(rows), stop
        self._num_taken = 0
        self._is_reading = False

    def __iter__(self) -> Iterator[Row]:
        while self._num_taken % BATCH_ROWS or not self._is_behind_a_problem():
            self._is_reading = True
            row = next(self._rows, None)
            self._is_reading = False
            if row is None:
                return
            self._num_taken += 1
            yield row

    def stop(self, text: str) -> _Problem:
        """The problem that has just ended this process's work; the others need not go further."""
        found = _Problem(num_rows=self._num_taken, while_reading=self._is_reading, text=text)
        try:
            scratch = self._stop.with_name(f"{self._stop.name}-{os.urandom(8).hex()}")
            scratch.write_text(str(found.num_rows))
            scratch.replace(self._stop)
        except OSError:  # a full disk, say: then the others work on to their end, and are told there
            return found
        return found

    def _is_behind_a_problem(self) -> bool:
        try:
            return self._num_taken >= int(self._stop.read_text())
        except FileNotFoundError:
            return False


class _OpenPart:
    """The arrays of one part, read batch by batch."""

    def __init__(self, part: Part) -> None:
        arrays = [_map(part.folder / f"{name}.npy") for name in (_LENGTHS, "tokens", "is_target")]
        self._lengths, self._tokens, self._is_target = arrays
        self._batches = iter(part.counts.batch_examples)
        self._example = self._token = 0

    def next_batch(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """The lengths of the examples of the next batch, their token ids and their masks."""
        first_example, first_token = self._example, self._token
        self._example += next(self._batches)
        lengths = self._lengths[first_example : self._example]
        self._token += int(lengths.sum(dtype=np.int64))
        tokens = slice(first_token, self._token)
        return lengths, self._tokens[tokens], self._is_target[tokens]


def _write_lengths(folder: Path, counts: Counts) -> None:
    write_array(folder / f"{_LENGTHS}.npy", np.array(counts.lengths, dtype=np.int32), "int32")


def _map(path: Path) -> npt.NDArray[Any]:
    # A process may have had no row to keep, and an empty file cannot be mapped.
    try:
        return map_array(path)
    except ValueError:
        found: npt.NDArray[Any] = np.load(path, allow_pickle=False)
        return found
