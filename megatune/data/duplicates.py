"""Rows that say the same, or have the same id: counted and found from hashes, of which 0 stands for none."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megatune.data.arrays import ArrayReader
from megatune.data.pool import Values

_AT_ONCE = 1 << 22
"""Hashes that are in memory at a time: 32 MiB of them, as much of their places, and some copies."""


def num_duplicates(file: Path) -> int:
    """Of the hashes in an array file, those that an equal one stands before."""
    return sum(len(found) - len(np.unique(found)) for found, _ in _portions(file, _num_portions(file)))


def first_duplicate(file: Path) -> tuple[int, int] | None:
    """The first place with a hash that an equal one stands before, and the first place of that one."""
    pairs = []
    for found, places in _portions(file, _num_portions(file)):
        _, first, group = np.unique(found, return_index=True, return_inverse=True)
        earliest = places[first][group]
        later = np.flatnonzero(earliest != places)
        if len(later):  # places ascend
            pairs.append((int(places[later[0]]), int(earliest[later[0]])))
    return min(pairs, default=None)


def num_shared(file: Path, other: Path) -> int:
    """Hashes in `file` that are also in `other`."""
    return sum(int(np.isin(mine, theirs).sum()) for (mine, _), (theirs, _) in _both(file, other))


def first_shared(file: Path, other: Path) -> tuple[int, int] | None:
    """The first place in `file` with a hash that is also in `other`, and the first place there."""
    pairs = []
    for (mine, places), (theirs, others) in _both(file, other):
        shared = np.flatnonzero(np.isin(mine, theirs))
        if len(shared):
            where = int(others[np.flatnonzero(theirs == mine[shared[0]])[0]])
            pairs.append((int(places[shared[0]]), where))
    return min(pairs, default=None)


_Portion = tuple[Values, Values]


def _both(file: Path, other: Path) -> Iterator[tuple[_Portion, _Portion]]:
    portions = _num_portions(other)
    return zip(_portions(file, portions), _portions(other, portions), strict=True)


def _num_portions(file: Path) -> int:
    reader = ArrayReader(file)
    reader.close()
    return max(1, -(-reader.length // _AT_ONCE))


def _portions(file: Path, count: int) -> Iterator[_Portion]:
    """The hashes of a file and their places, divided by the hashes' value, so that equal ones are together.

    A pass over the file for each portion.
    """
    for portion in range(count):
        reader = ArrayReader(file)
        chosen, places = [], []
        for start in range(0, reader.length, _AT_ONCE):
            found = reader.read(start, min(_AT_ONCE, reader.length - start))
            own = np.flatnonzero((found != 0) & (found % np.uint64(count) == portion))
            chosen.append(found[own])
            places.append(own + start)
        reader.close()
        yield (
            np.concatenate(chosen) if chosen else np.empty(0, dtype=np.uint64),
            np.concatenate(places) if places else np.empty(0, dtype=np.int64),
        )
