"""Rows of JSON files: one object a line, or one array of objects."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from megatune.data.opened import COMPRESSED, decoded, lines, opened
from megatune.data.rows import BLOCK_BYTES, Block, Place, Row, in_blocks
from megatune.errors import DataError

_EXCERPT_CHARS = 40
_ARRAY_BYTES = 1 << 20
_LARGEST_ITEM_CHARS = 1 << 28


class RangeRows:
    """The rows whose lines begin in a range of bytes; their places are counted from its first line."""

    def __init__(self, path: Path, start: int, end: int) -> None:
        self._path, self._start, self._end = path, start, end
        self.num_rows = self.num_lines = 0
        """So far."""

    def __iter__(self) -> Iterator[Row]:
        with self._path.open("rb") as file:
            if self._start:
                file.seek(self._start - 1)
                file.readline()  # it began before
            begin = position = file.tell()
            for number, line in lines(file):
                if position >= self._end:
                    return
                self.num_lines = number
                if line.strip():
                    self.num_rows += 1
                    place = Place(self._path, self.num_rows, number, begin)
                    yield Row(_object(line, place, position), place)
                position += len(line)


def json_blocks(path: Path, *, in_order: bool) -> Iterator[Block]:
    """Blocks of the rows of `path`. in_order: blocks that know how many rows they hold."""
    if _is_array(path):
        yield from _array_blocks(path)
    elif in_order or path.suffix in COMPRESSED:
        yield from _line_blocks(path)
    else:
        size = path.stat().st_size
        for start in range(0, size, BLOCK_BYTES):
            end = min(start + BLOCK_BYTES, size)
            yield Block(partial(RangeRows, path, start, end), None, end - start)


def _line_blocks(path: Path) -> Iterator[Block]:
    with opened(path) as file:
        filled = (numbered for numbered in lines(file.bytes) if numbered[1].strip())
        yield from in_blocks(filled, file, partial(_parsed, path))


def _parsed(path: Path, numbered: list[tuple[int, bytes]], before: int) -> Iterator[Row]:
    for number, (line_number, line) in enumerate(numbered, start=before + 1):
        place = Place(path, number, line_number)
        yield Row(_object(line, place, None), place)


def _object(line: bytes, place: Place, offset: int | None) -> dict[str, object]:
    try:
        found = json.loads(line.decode())
    except ValueError:  # not UTF-8, a mark before the text, or not JSON: find out which
        found = _explained(line, place, offset)
    if isinstance(found, dict):
        return found
    line_at = _line_at(place)
    raise DataError(
        f"{line_at}: a {type(found).__name__} where an object with columns must be: {_excerpt(line.decode(), 0)}"
    )


def _explained(line: bytes, place: Place, offset: int | None) -> object:
    line_at = _line_at(place)
    number = int(line_at.rpartition(":")[2])
    text = decoded(line, place.path, number, offset=offset).rstrip("\r\n")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(_broken(line_at, place.path, text, error)) from None
    except RecursionError:
        raise DataError(f"{line_at}: nested too deeply to be read") from None


def _line_at(place: Place) -> str:
    """`train.jsonl:12`"""
    return str(place).partition(" (row ")[0]


def _broken(line_at: str, path: Path, line: str, error: json.JSONDecodeError) -> str:
    is_array = ".json" in path.suffixes
    hint = "" if is_array else " Each line must hold one whole JSON object."
    return f"{line_at}:{error.colno}: not JSON ({error.msg}) around {_excerpt(line, error.colno - 1)}.{hint}"


def _excerpt(line: str, at: int) -> str:
    """The text around a position, quoted, with marks where something was left out."""
    line = line.rstrip("\r\n")
    start, end = max(0, at - _EXCERPT_CHARS), at + _EXCERPT_CHARS
    return repr(("..." if start else "") + line[start:end] + ("..." if end < len(line) else ""))


def _is_array(path: Path) -> bool:
    with opened(path) as file:
        first = next((line for line in file.bytes if line.strip()), b"")
    return first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _array_blocks(path: Path) -> Iterator[Block]:
    with opened(path) as file:
        yield from in_blocks(_items(path, file.bytes.read), file, partial(_from_items, path))


def _from_items(path: Path, items: list[object], before: int) -> Iterator[Row]:
    for number, values in enumerate(items, start=before + 1):
        place = Place(path, number)
        if not isinstance(values, dict):
            raise DataError(f"{place}: a {type(values).__name__} where an object must be")
        yield Row(values, place)


class _ArrayText:
    """The text of an array of which no more is kept than one item needs."""

    def __init__(self, path: Path, read: Callable[[int], bytes]) -> None:
        self._path, self._read = path, read
        self._undecoded = b""
        self.text, self.at, self.is_whole = "", 0, False
        self.lines_gone = 0
        self.grow()
        self.text = self.text.removeprefix("\ufeff")

    def grow(self) -> None:
        """Read on, as much as is there already, and forget what lies behind."""
        gone, self.text, self.at = self.text[: self.at], self.text[self.at :], 0
        self.lines_gone += gone.count("\n")
        more = self._read(max(_ARRAY_BYTES, len(self.text)))
        self.is_whole = not more
        pending = self._undecoded + more
        try:
            self.text += pending.decode()
            self._undecoded = b""
        except UnicodeDecodeError as error:
            if not more or len(pending) - error.start > 3:
                raise self._not_utf8(pending, error) from None
            self.text += pending[: error.start].decode()
            self._undecoded = pending[error.start :]

    def skip_blank(self) -> str:
        """Go to the next character that is not blank, and give it; empty at the end."""
        while True:
            rest = self.text[self.at : self.at + 1]
            if rest and not rest.isspace():
                return rest
            if rest:
                self.at += 1
            elif self.is_whole:
                return ""
            else:
                self.grow()

    def _not_utf8(self, pending: bytes, error: UnicodeDecodeError) -> DataError:
        number = self.lines_gone + self.text.count("\n") + pending[: error.start].count(b"\n") + 1
        start = pending.rfind(b"\n", 0, error.start) + 1
        line = pending[start : error.start + 40]
        try:
            decoded(line, self._path, number)
        except DataError as found:
            return found
        raise AssertionError("a line that was not UTF-8 is") from error


def _items(path: Path, read: Callable[[int], bytes]) -> Iterator[object]:
    """The items of one array, parsed as the file is read. Raises DataError with line and column."""
    text = _ArrayText(path, read)
    decoder = json.JSONDecoder()
    text.skip_blank()
    text.at += 1  # the bracket
    first = True
    while (found := text.skip_blank()) != "]":
        if not first:
            if found != ",":
                raise _at(path, text, "Expecting ',' delimiter", text.at)
            text.at += 1
            text.skip_blank()
        first = False
        yield _item(path, text, decoder)
    text.at += 1
    if text.skip_blank():
        problem = "a file that begins with [ is one array of all its rows, and this one has ended"
        raise _at(path, text, problem, text.at)


def _item(path: Path, text: _ArrayText, decoder: json.JSONDecoder) -> object:
    while True:
        try:
            item, end = decoder.raw_decode(text.text, text.at)
            if end < len(text.text) or text.is_whole:  # or a number may go on behind
                text.at = end
                return item
        except json.JSONDecodeError as error:
            if text.is_whole or len(text.text) - text.at > _LARGEST_ITEM_CHARS:
                raise _at(path, text, error.msg, error.pos) from None
        except RecursionError:
            raise _at(path, text, "nested too deeply to be read", text.at) from None
        text.grow()


def _at(path: Path, text: _ArrayText, message: str, at: int) -> DataError:
    before = text.text[:at]
    number = text.lines_gone + before.count("\n") + 1
    column = at - before.rfind("\n")
    line = text.text[before.rfind("\n") + 1 :].partition("\n")[0]
    return DataError(f"{path}:{number}:{column}: not JSON ({message}) around {_excerpt(line, column - 1)}.")
