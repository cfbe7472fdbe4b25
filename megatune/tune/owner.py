"""Who trains a trial: a mark in its folder that moves while its worker lives."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = "worker"
_MOVES_EVERY_S = 5.0
_STILL_S = 120.0
"""An NFS client may show times that are a minute old."""


class Mark:
    """The mark of this process on a trial's folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._moved_at = time.monotonic()

    def move(self) -> None:
        """Show that the worker lives; call it often."""
        if time.monotonic() - self._moved_at >= _MOVES_EVERY_S:
            self._moved_at = time.monotonic()
            os.utime(self._path)


@contextmanager
def marked(folder: Path) -> Iterator[Mark]:
    """Hold the mark on `folder` as long as this is entered, or this process lives."""
    path = folder / _NAME
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(socket.gethostname())
        file.flush()
        yield Mark(path)
        path.unlink(missing_ok=True)


class Watcher:
    """Finds trials whose worker is gone."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[float, float]] = {}

    def is_abandoned(self, folder: Path) -> bool:
        """Whether nobody trains in `folder` any more.

        A worker on this machine is known to be gone by its lock; one elsewhere when its mark has stood
        still for two minutes, by this machine's clock, since this was first asked.
        """
        path = folder / _NAME
        try:
            with path.open(encoding="utf-8") as file:
                if file.read() == socket.gethostname():
                    return _is_free(file.fileno())
                moved = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            moved = 0.0  # not begun yet, or ending just now
        known = self._seen.get(path)
        if known is None or known[0] != moved:
            self._seen[path] = moved, time.monotonic()
            return False
        return time.monotonic() - known[1] > _STILL_S


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True
