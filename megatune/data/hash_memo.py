"""Hashes of files that have not changed since they were hashed, without reading them again."""

import json
import time
from pathlib import Path

from megatune.files import hash_file, write_text_atomic

SETTLED_AFTER_NS = 2 * 10**9
"""A file that was written to so shortly before could be written to again without another time of change: two
writes within one tick of the file system's clock, which is 2 s where it is slowest."""


class HashMemo:
    """Remembers, in one JSON file, the hash of each file together with what tells that it is still the same.

    That is its size, inode, and the times of its last writing and last change: the latter is set by the
    system alone, also by whoever gives a file an old date. A memo that cannot be read is an empty one.
    """

    def __init__(self, file: Path | None) -> None:
        """None remembers nothing."""
        self._file = file
        self._known: dict[str, list[object]] = {} if file is None else _read(file)
        self._is_changed = False

    def hash_of(self, path: Path) -> str:
        """The hash of the bytes of `path`."""
        known = self._known.get(str(path.absolute()))
        marks = marks_of(path)
        if known is not None and known[:-1] == marks:
            return str(known[-1])
        now = time.time_ns()
        found = hash_file(path)
        if now - path.stat().st_ctime_ns > SETTLED_AFTER_NS and marks_of(path) == marks:
            self._known[str(path.absolute())] = [*marks, found]
            self._is_changed = True
        return found

    def save(self) -> None:
        """Write down what is new. Raises OSError where that is impossible."""
        if self._is_changed and self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(self._file, json.dumps(self._known) + "\n")
            self._is_changed = False


def marks_of(path: Path) -> list[int]:
    """What tells that a file is the same: size, inode, the times of its last writing and its last change."""
    found = path.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _read(file: Path) -> dict[str, list[object]]:
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    is_memo = isinstance(known, dict) and all(isinstance(e, list) and len(e) == 5 for e in known.values())
    return known if is_memo else {}
