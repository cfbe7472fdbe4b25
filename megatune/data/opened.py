"""Files as bytes, whether they are compressed or not."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from megatune.errors import DataError

COMPRESSED = (".gz", ".zst")
_BUFFER_BYTES = 1 << 20
_GUESSES = ("utf-16", "cp1252", "latin-1")


def plain_suffix(path: Path) -> str:
    """What the file holds by its name, compressed or not.

    >>> plain_suffix(Path("rows.jsonl.gz"))
    '.jsonl'
    """
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


class OpenedFile:
    """A file's bytes, decompressed as they are read, and how far into the file on the disk that is."""

    def __init__(self, raw: IO[bytes], bytes_: IO[bytes]) -> None:
        self._raw, self.bytes = raw, bytes_

    @property
    def position(self) -> int:
        """Bytes of the file on the disk that were read: its size at the end."""
        return self._raw.tell()


@contextmanager
def opened(path: Path) -> Iterator[OpenedFile]:
    """The file `path`. Raises DataError where the compressed data is damaged or cut off."""
    with path.open("rb", buffering=_BUFFER_BYTES) as raw:
        try:
            if path.suffix == ".gz":
                with gzip.open(raw) as unpacked:
                    yield OpenedFile(raw, cast(IO[bytes], io.BufferedReader(unpacked, _BUFFER_BYTES)))
            elif path.suffix == ".zst":
                with _zst(raw) as unpacked:
                    yield OpenedFile(raw, unpacked)
            else:
                yield OpenedFile(raw, raw)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path} is no whole {path.suffix} file: {error}") from None


def _zst(raw: IO[bytes]) -> Any:
    import pyarrow  # type: ignore[import-untyped]  # it brings the decompressor along; half a second to import

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
    return io.BufferedReader(_ZstReader(stream), _BUFFER_BYTES)


class _ZstReader(io.RawIOBase):
    """A pyarrow stream with the errors of this package."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            found: bytes = self._stream.read(len(buffer))
        except OSError as error:
            if error.errno is not None:
                raise
            raise EOFError(str(error)) from None
        buffer[: len(found)] = found
        return len(found)


def lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line with its end). Only newlines end a line: text may hold U+2028."""
    return enumerate(file, start=1)


def decoded(line: bytes, path: Path, number: int, *, offset: int | None = None) -> str:
    """A line as text, without the mark that some programs put before the first. Raises DataError.

    offset: of the line in the file, where it is known.
    """
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(path, number, line, error.start, offset) from None


def not_utf8(path: Path, number: int, line: bytes, at: int, offset: int | None) -> DataError:
    """The error for the first byte of a file that is not UTF-8; it suggests what the file may be."""
    byte = f"byte {offset + at}" if offset is not None else f"byte {at} of the line"
    encoding, meant = guessed(number, line, at)
    return DataError(
        f"{path}: {byte} (0x{line[at]:02x}, line {number}) is not UTF-8. {meant}; if "
        f"that is right, convert the file: iconv -f {encoding} -t utf-8 {path.name} > utf8-{path.name}"
    )


def guessed(number: int, line: bytes, at: int) -> tuple[str, str]:
    """An encoding that a line which is no UTF-8 from byte `at` on may be in, and what it would say in it."""
    encoding = next(name for name in _GUESSES if _fits(name, number, line))
    shown = line[max(0, at - 20) : at + 20] if encoding != "utf-16" else line[:40]
    text = shown.decode(encoding, errors="replace").strip()
    return encoding, f"In {encoding} it would read {text!r}"


def _fits(encoding: str, number: int, line: bytes) -> bool:
    if encoding == "utf-16":
        return number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
