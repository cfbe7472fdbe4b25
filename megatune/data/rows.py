"""A row of the user's data, where it stands, and blocks of rows that can be read apart from each other."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from megatune.data.opened import OpenedFile, opened

BLOCK_ROWS = 1000
"""Rows of a block, where a file can only be read from its beginning."""
BLOCK_BYTES = 1 << 20
"""Bytes of a block, where a file can be read from anywhere."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands, counted from a byte of its file: who reads from there knows no more."""

    path: Path
    number: int
    """Of the row, from 1."""
    line: int | None = None
    """From 1; None where the file has none."""
    start: int = 0
    """The byte from which `number` and `line` are counted."""
    label: str = ""
    """What to call the source, where that is not the path."""

    def __str__(self) -> str:
        """`data/train.jsonl:12 (row 12)`. Reads the file up to `start`."""
        lines, rows = counted_to(self.path, self.start) if self.start else (0, 0)
        return self.written(lines, rows)

    def written(self, lines_before: int, rows_before: int) -> str:
        """The same, by who knows what stands before `start`."""
        line = None if self.line is None else lines_before + self.line
        return place_name(self.label or str(self.path), rows_before + self.number, line)


def place_name(file: str, row: int, line: int | None) -> str:
    """Where a row stands, for messages.

    >>> place_name("data/train.jsonl", 12, 13), place_name("a.parquet", 3, None)
    ('data/train.jsonl:13 (row 12)', 'a.parquet (row 3)')
    """
    return f"{file}{'' if line is None else f':{line}'} (row {row})"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the user's data."""

    values: dict[str, object]
    place: Place

    @property
    def where(self) -> str:
        """`data/train.jsonl:12 (row 12)`, for messages."""
        return str(self.place)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that one process reads. Making a block is cheap: nothing is parsed before `rows` is called."""

    rows: Callable[[], Iterable[Row]]
    """Raises DataError at whatever cannot be read."""
    num_rows: int | None
    """None where only reading tells."""
    num_bytes: int
    """Of the file on the disk; what the progress counts."""


def in_blocks(
    items: Iterable[_Item], file: OpenedFile, rows_of: Callable[[list[_Item], int], Iterator[Row]]
) -> Iterator[Block]:
    """Blocks of `items`, which are read from `file` on the way, one a row.

    rows_of: the rows of some items, given how many rows stand before them.
    """
    items = iter(items)
    num_rows = read = 0
    while some := list(islice(items, BLOCK_ROWS)):
        yield Block(partial(rows_of, some, num_rows), len(some), file.position - read)
        num_rows, read = num_rows + len(some), file.position
        del some  # they are not held while the next are read


def limited(blocks: Iterable[Block], max_rows: int | None) -> Iterator[Block]:
    """The blocks with the first `max_rows` rows; all of them for None. The blocks must know their rows."""
    if max_rows is None:
        yield from blocks
        return
    left = max_rows
    for block in blocks:
        assert block.num_rows is not None, "a limited source is read from its beginning"
        if left <= block.num_rows:
            yield Block(partial(_first, block, left), left, block.num_bytes)
            return
        left -= block.num_rows
        yield block


def counted_to(path: Path, end: int) -> tuple[int, int]:
    """Lines, and lines that are not blank, before byte `end`."""
    num_lines = num_rows = position = 0
    with opened(path) as file:
        for line in file.bytes:
            if position >= end:
                break
            position += len(line)
            num_lines += 1
            num_rows += bool(line.strip())
    return num_lines, num_rows


def _first(block: Block, count: int) -> Iterator[Row]:
    """Asks for no row beyond: it may be broken, and nobody has asked to read it."""
    return islice(block.rows(), count)
