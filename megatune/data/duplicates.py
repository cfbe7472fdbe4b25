"""Rows that say the same, counted from the hashes of what they say."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megatune.data.arrays import ArrayReader
from megatune.data.pool import Values

_AT_ONCE = 1 << 22
"""Hashes that are in memory at a time: 32 MiB of them, and some copies."""


def num_duplicates(file: Path) -> int:
    """Of the hashes in an array file, those that an equal one stands before."""
    portions = _num_portions(file)
    return sum(len(found) - len(np.unique(found)) for found in _portions(file, portions))


def num_shared(file: Path, other: Path) -> int:
    """Hashes in `file` that are also in `other`."""
    portions = _num_portions(other)
    both = zip(_portions(file, portions), _portions(other, portions), strict=True)
    return sum(int(np.isin(mine, theirs).sum()) for mine, theirs in both)


def _num_portions(file: Path) -> int:
    reader = ArrayReader(file)
    reader.close()
    return max(1, -(-reader.length // _AT_ONCE))


def _portions(file: Path, count: int) -> Iterator[Values]:
    """The hashes of a file divided by their value, so that equal ones are together; a pass for each portion."""
    for portion in range(count):
        reader = ArrayReader(file)
        chosen = []
        for start in range(0, reader.length, _AT_ONCE):
            found = reader.read(start, min(_AT_ONCE, reader.length - start))
            chosen.append(found[found % np.uint64(count) == portion])
        reader.close()
        yield np.concatenate(chosen) if chosen else np.empty(0, dtype=np.uint64)
