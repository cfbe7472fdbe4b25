"""Rows of csv, tsv and txt files, with the exact place of whatever is wrong in them.

These formats, and JSON, are parsed here and not by `datasets`, which guesses types: a completion
"2020-01-01" comes back as a datetime, a csv cell "NA" or "None" as a missing value, and a broken
line as a number within a block. What a model learns from must be the text that the file holds.
"""

import csv
import io
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

from megatune.data.opened import decoded, lines, opened
from megatune.data.rows import Block, Place, Row, in_blocks
from megatune.errors import DataError

_MAX_CELL_CHARS = 2**31 - 1  # csv's own limit, 131072, is shorter than one long document


def table_blocks(path: Path, *, delimiter: str) -> Iterator[Block]:
    """Blocks of a table with a header; every cell is text, exactly as written.

    Raises DataError for a row that has more or fewer cells than the header.
    """
    csv.field_size_limit(_MAX_CELL_CHARS)
    with opened(path) as file:
        try:
            text = io.TextIOWrapper(file.bytes, encoding="utf-8-sig", newline="")
            table = csv.reader(text, delimiter=delimiter, strict=True)
            try:
                header = next(table, [])
                _check_header(header, path)
                filled = ((table.line_num, cells) for cells in table if cells)
                yield from in_blocks(filled, file, partial(_cells, path, header))
            finally:
                text.detach()
        except UnicodeDecodeError:
            raise _first_bad_byte(path) from None
        except csv.Error as error:
            raise DataError(f"{path}:{table.line_num}: not a readable table: {error}") from None


def txt_blocks(path: Path) -> Iterator[Block]:
    """Blocks of documents, which one or more blank lines divide."""
    with opened(path) as file:
        yield from in_blocks(_documents(file.bytes), file, partial(_texts, path))


def _cells(
    path: Path, header: list[str], numbered: list[tuple[int, list[str]]], before: int
) -> Iterator[Row]:
    for number, (line, cells) in enumerate(numbered, start=before + 1):
        place = Place(path, number, line)
        if len(cells) != len(header):
            raise DataError(
                f"{place}: {len(cells)} cells, the header has {len(header)} ({', '.join(header)}). Put "
                "quotes around text that holds the separator"
            )
        yield Row(dict(zip(header, cells, strict=True)), place)


def _check_header(header: list[str], path: Path) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}:1: the header names {', '.join(map(repr, twice))} more than once")


def _documents(file: IO[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """(line it begins at, its lines) of each document."""
    block: list[bytes] = []
    start = 0
    for number, line in chain(lines(file), [(0, b"")]):
        if line.strip():
            start = start if block else number
            block.append(line)
        elif block:
            yield start, block
            block = []


def _texts(path: Path, documents: list[tuple[int, list[bytes]]], before: int) -> Iterator[Row]:
    for number, (start, block) in enumerate(documents, start=before + 1):
        try:
            text = [line.decode("utf-8-sig" if start + at == 1 else "utf-8") for at, line in enumerate(block)]
        except UnicodeDecodeError:
            raise _first_bad_byte(path) from None
        text = [line.rstrip("\r\n") for line in text]
        yield Row({"text": "\n".join(text)}, Place(path, number, start))


def _first_bad_byte(path: Path) -> DataError:
    """The error for the first byte of a file that is not UTF-8."""
    offset = 0
    with opened(path) as file:
        for number, line in lines(file.bytes):
            try:
                decoded(line, path, number, offset=offset)
            except DataError as error:
                return error
            offset += len(line)
    raise AssertionError(f"{path} was not UTF-8 a moment ago and is now: it changed while it was read")
