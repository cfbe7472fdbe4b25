"""The end of a log file, and what is added to it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

_BLOCK_BYTES = 1 << 16


def last_lines(path: Path, num_lines: int) -> tuple[bytes, int]:
    """The last lines of a file as they are, and the byte at which they end."""
    with path.open("rb") as file:
        end = start = file.seek(0, os.SEEK_END)
        tail = b""
        # One newline more than lines: the one before the first of them.
        while start > 0 and tail.count(b"\n") <= num_lines:
            start = max(0, start - _BLOCK_BYTES)
            file.seek(start)
            tail = file.read(end - start)
    lines = tail.splitlines(keepends=True)
    return b"".join(lines[-num_lines:] if num_lines else []), end


def added(path: Path, start: int, *, wait: Callable[[], bool]) -> Iterator[bytes]:
    """What is written to `path` from byte `start` on, as it comes.

    The file may be missing, cut back, or replaced by another one. `wait` is called when nothing new is
    there; when it returns False, what has come meanwhile is given and it ends.
    """
    position, identity, go_on = start, _identity(path), True
    while True:
        now = _identity(path)
        if now != identity and now is not None:
            # Replaced, or made anew: all of it is new. What was missing so far begins at 0, too.
            position, identity = 0, now
        data, position = _read(path, position)
        if data:
            yield data
        elif not go_on:
            return
        else:
            go_on = wait()


def _read(path: Path, position: int) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < position:
                position = 0  # cut back
            file.seek(position)
            data = file.read(_BLOCK_BYTES)
    except FileNotFoundError:
        return b"", position
    return data, position + len(data)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
