"""Put short examples into one row, so that little of a row is padding."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

WINDOW = 20_000
"""Examples that are packed together. Within a window they are sorted by length, so a window is what
keeps a training order random; 20,000 examples fill rows to more than 99 % in practice."""


def pack(lengths: Sequence[int], *, max_length: int, seed: int) -> list[list[int]]:
    """Rows of example numbers, each row at most `max_length` tokens long; every example in one row.

    Best-fit decreasing over windows of examples shuffled with `seed`: the longest goes first, into
    the fullest row that still has room. Equal arguments give equal rows. An example is never split,
    so one longer than `max_length` is a ValueError.

    >>> sorted(map(sorted, pack([5, 3, 4, 2], max_length=7, seed=0)))
    [[0, 3], [1, 2]]
    """
    if any(length > max_length for length in lengths):
        raise ValueError(f"an example has {max(lengths)} tokens, a row at most {max_length}")
    order = shuffled(len(lengths), seed)
    rows: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        rows += _best_fit(order[start : start + WINDOW].tolist(), lengths, max_length)
    return rows


def fill_ratio(lengths: Iterable[int], *, num_rows: int, max_length: int) -> float:
    """The share of `num_rows` rows of `max_length` that is tokens, not padding."""
    return sum(lengths) / (num_rows * max_length)


def shuffled(count: int, *entropy: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """0 .. count - 1 in an order that is a function of the non-negative integers `entropy` alone.

    Numbers are sorted by a hash of themselves (splitmix64) and not by NumPy's generators, whose
    streams may change between versions: a run that is resumed after an update sees the same order.
    """
    keys = np.arange(count, dtype=np.uint64)
    for number in entropy:
        keys = _mixed(keys ^ _mixed(np.array([number % 2**64], dtype=np.uint64)))
    return np.argsort(keys, kind="stable")


def _mixed(
    values: "np.ndarray[tuple[int], np.dtype[np.uint64]]",
) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    """splitmix64's output function (Steele, Lea, Flood 2014), which maps 64 bits one to one."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _best_fit(window: list[int], lengths: Sequence[int], max_length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    rows_with_room: defaultdict[int, list[int]] = defaultdict(list)  # tokens of room -> row numbers
    rooms: list[int] = []  # the keys of `rows_with_room` that have rows, in ascending order
    for example in sorted(window, key=lambda number: -lengths[number]):
        row, room = _take_row(rows_with_room, rooms, lengths[example])
        if row is None:
            row, room = len(rows), max_length
            rows.append([])
        rows[row].append(example)
        _offer_row(rows_with_room, rooms, row, room - lengths[example])
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
