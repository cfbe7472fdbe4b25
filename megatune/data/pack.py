"""Put short examples into one row, so that little of a row is padding."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

WINDOW = 20_000
"""Examples that are packed together. Within a window they are sorted by length, so a window is what
keeps a training order random; 20,000 examples fill rows to more than 99 % in practice."""
_GROUP = 64
"""Examples that follow one another in the file and come into the same window."""


LengthsOf = Callable[[int, int], npt.NDArray[np.int64]]
"""(first, count) -> the lengths of these examples."""
CopiesOf = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
"""Example numbers -> how often each comes in an epoch."""


def pack(
    lengths_of: LengthsOf, num_examples: int, *, max_length: int, seed: int, copies_of: CopiesOf | None = None
) -> Iterator[list[list[int]]]:
    """Rows of example numbers, a window of them at a time, each row at most `max_length` tokens long.

    Best-fit decreasing over windows of examples that `seed` chooses: the longest goes first, into
    the fullest row that still has room. Equal arguments give equal rows. An example is never split,
    so one longer than `max_length` is a ValueError. Every example is in one row, or in as many as
    `copies_of` says. Groups of examples are shuffled, not examples: that needs 1/8 byte an example.

    >>> from numpy import array
    >>> lengths = array([5, 3, 4, 2])
    >>> sorted(map(sorted, *pack(lambda first, count: lengths[first : first + count], 4, max_length=7, seed=0)))
    [[0, 3], [1, 2]]
    """
    window: list[tuple[int, int]] = []
    for group in shuffled(-(-num_examples // _GROUP), seed).tolist():
        first = group * _GROUP
        count = min(_GROUP, num_examples - first)
        lengths = lengths_of(first, count)
        if lengths.max() > max_length:
            raise ValueError(f"an example has {lengths.max()} tokens, a row at most {max_length}")
        numbers = np.arange(first, first + count)
        copies = np.ones(count, dtype=np.int64) if copies_of is None else copies_of(numbers)
        window += zip(np.repeat(numbers, copies).tolist(), np.repeat(lengths, copies).tolist(), strict=True)
        while len(window) >= WINDOW:
            yield _best_fit(_mixed_up(window[:WINDOW], seed), max_length)
            window = window[WINDOW:]
    if window:
        yield _best_fit(_mixed_up(window, seed), max_length)


def _mixed_up(window: list[tuple[int, int]], seed: int) -> list[tuple[int, int]]:
    """Examples of one length then meet in another order for another seed."""
    return [window[at] for at in shuffled(len(window), seed, 1).tolist()]


def shuffled(count: int, *entropy: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """0 .. count - 1 in an order that is a function of the non-negative integers `entropy` alone.

    Numbers are sorted by a hash of themselves (splitmix64) and not by NumPy's generators, whose
    streams may change between versions: a run that is resumed after an update sees the same order.
    """
    keys = np.arange(count, dtype=np.uint64)
    for number in entropy:
        keys = mixed(keys ^ mixed(np.array([number % 2**64], dtype=np.uint64)))
    return np.argsort(keys, kind="stable")


def mixed(
    values: "np.ndarray[tuple[int], np.dtype[np.uint64]]",
) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    """splitmix64's output function (Steele, Lea, Flood 2014), which maps 64 bits one to one."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _best_fit(window: list[tuple[int, int]], max_length: int) -> list[list[int]]:
    """window: (number, length) of each example."""
    rows: list[list[int]] = []
    rows_with_room: defaultdict[int, list[int]] = defaultdict(list)  # tokens of room -> row numbers
    rooms: list[int] = []  # the keys of `rows_with_room` that have rows, in ascending order
    for example, length in sorted(window, key=lambda entry: -entry[1]):
        row, room = _take_row(rows_with_room, rooms, length)
        if row is None:
            row, room = len(rows), max_length
            rows.append([])
        rows[row].append(example)
        _offer_row(rows_with_room, rooms, row, room - length)
    return rows


def _take_row(
    rows_with_room: defaultdict[int, list[int]], rooms: list[int], length: int
) -> tuple[int | None, int]:
    """The row with the least room that is enough, and that room; None when there is no such row."""
    at = bisect_left(rooms, length)
    if at == len(rooms):
        return None, 0
    room = rooms[at]
    row = rows_with_room[room].pop()
    if not rows_with_room[room]:
        del rooms[at]
    return row, room


def _offer_row(rows_with_room: defaultdict[int, list[int]], rooms: list[int], row: int, room: int) -> None:
    if room == 0:
        return
    if not rows_with_room[room]:
        insort(rooms, room)
    rows_with_room[room].append(row)
