"""Rows of jsonl, json, csv, tsv and txt files, with the exact place of whatever is wrong in them.

These formats are parsed here and not by `datasets`, which guesses types: a completion
"2020-01-01" comes back as a datetime, a csv cell "NA" or "None" as a missing value, and a broken
line as a number within a block. What a model learns from must be the text that the file holds.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from megatune.errors import DataError

if TYPE_CHECKING:
    from _csv import Reader

_MAX_CELL_CHARS = 2**31 - 1  # csv's own limit, 131072, is shorter than one long document
_EXCERPT_CHARS = 40


@dataclass(frozen=True)
class Row:
    """One row of the user's data and where it stands, for messages."""

    values: dict[str, object]
    where: str
    """`data/train.jsonl:12 (row 12)`."""


def json_rows(path: Path) -> Iterator[Row]:
    """One object a line, or one array of objects. Raises DataError with file, line and the text there."""
    if _first_character(path) == "[":
        yield from _json_array_rows(path)
        return
    number = 0
    for line_number, line in _lines(path):
        if line.strip():
            number += 1
            where = f"{path}:{line_number} (row {number})"
            yield Row(_json_object(line, path, line_number), where)


def csv_rows(path: Path, *, delimiter: str) -> Iterator[Row]:
    """Rows of a table with a header; every cell is text, exactly as written.

    Raises DataError for a row that has more or fewer cells than the header.
    """
    csv.field_size_limit(_MAX_CELL_CHARS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _table_rows(csv.reader(file, delimiter=delimiter, strict=True), path)
    except UnicodeDecodeError:
        raise _not_utf8(path) from None


def txt_rows(path: Path) -> Iterator[Row]:
    """One document per block of lines; one or more blank lines end a document."""
    block: list[str] = []
    number = start = 0
    for line_number, line in chain(_lines(path), [(0, "")]):
        if line.strip():
            start = start if block else line_number
            block.append(line.rstrip("\r\n"))
        elif block:
            number += 1
            yield Row({"text": "\n".join(block)}, f"{path}:{start} (row {number})")
            block = []


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": lambda path: csv_rows(path, delimiter=","),
    ".tsv": lambda path: csv_rows(path, delimiter="\t"),
    ".txt": txt_rows,
}
"""By the ending of the file name."""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line with its end). Only newlines end a line: text may hold U+2028."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _bad_byte(path, offset + error.start, raw[error.start], number) from None
            offset += len(raw)
            yield number, line


def _first_character(path: Path) -> str:
    return next((line.strip()[0] for _, line in _lines(path) if line.strip()), "")


def _json_object(line: str, path: Path, line_number: int) -> dict[str, object]:
    line = line.rstrip("\r\n")  # or json would call the end of this line column 1 of the next
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(_broken_json(path, line_number, line, error)) from None
    if not isinstance(found, dict):
        raise DataError(
            f"{path}:{line_number}: a {type(found).__name__} where an object with columns must be: "
            f"{_excerpt(line, 0)}"
        )
    return found


def _json_array_rows(path: Path) -> Iterator[Row]:
    text = "".join(line for _, line in _lines(path))
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1]
        raise DataError(_broken_json(path, error.lineno, line, error)) from None
    for number, values in enumerate(found, start=1):
        if not isinstance(values, dict):
            raise DataError(f"{path} (row {number}): a {type(values).__name__} where an object must be")
        yield Row(values, f"{path} (row {number})")


def _broken_json(path: Path, line_number: int, line: str, error: json.JSONDecodeError) -> str:
    hint = " Each line must hold one whole JSON object." if path.suffix != ".json" else ""
    return (
        f"{path}:{line_number}:{error.colno}: not JSON ({error.msg}) around "
        f"{_excerpt(line, error.colno - 1)}.{hint}"
    )


def _excerpt(line: str, at: int) -> str:
    """The text around a position, quoted, with marks where something was left out."""
    start, end = max(0, at - _EXCERPT_CHARS), at + _EXCERPT_CHARS
    return repr(("..." if start else "") + line[start:end] + ("..." if end < len(line) else ""))


def _table_rows(table: "Reader", path: Path) -> Iterator[Row]:
    try:
        header: list[str] = next(table, [])
        _check_header(header, path)
        number = 0
        for cells in table:
            if not cells:  # a blank line
                continue
            number += 1
            if len(cells) != len(header):
                raise DataError(
                    f"{path}:{table.line_num} (row {number}): {len(cells)} cells, the header has "
                    f"{len(header)} ({', '.join(header)}). Put quotes around text that holds the separator"
                )
            yield Row(dict(zip(header, cells, strict=True)), f"{path}:{table.line_num} (row {number})")
    except csv.Error as error:
        raise DataError(f"{path}:{table.line_num}: not a readable table: {error}") from None


def _check_header(header: list[str], path: Path) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}:1: the header names {', '.join(map(repr, twice))} more than once")


def _not_utf8(path: Path) -> DataError:
    """The error for the first byte of a file that is not UTF-8."""
    try:
        for _ in _lines(path):
            pass
    except DataError as error:
        return error
    raise AssertionError(f"{path} was not UTF-8 a moment ago and is now: it changed while it was read")


def _bad_byte(path: Path, offset: int, byte: int, line_number: int) -> DataError:
    return DataError(
        f"{path}: byte {offset} (0x{byte:02x}, line {line_number}) is not UTF-8. "
        f"Convert the file, for example: iconv -f latin1 -t utf-8 {path.name}"
    )
