"""Filling a small file system up."""

import os
from pathlib import Path


def free_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def leave_free(disk: Path, num_bytes: int) -> None:
    """Fill the disk up but for `num_bytes`."""
    (disk / "filler").write_bytes(bytes(free_bytes(disk) - num_bytes))
