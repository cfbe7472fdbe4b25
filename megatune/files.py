"""Files that survive a power cut, and a hash that finds damage in them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

_BLOCK_BYTES = 1 << 20
IN_MEMORY = ("tmpfs", "ramfs")
"""Types of file systems that no disk is behind."""


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`: a reader, or a crash at any moment, finds the old text or the new.

    Raises OSError that names `path`, for instance when no space is left; the old file then stays.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            scratch.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it that are missing, and wait until their names are on the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk: a rename is only safe after this."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """xxh3 (128 bits, hexadecimal) of the bytes of a file: finds damage, not forgery."""
    digest = xxhash.xxh3_128()
    for block in file_blocks(path):
        digest.update(block)
    return digest.hexdigest()


def file_blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, a megabyte at a time."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def file_system_type(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that `folder` is or will be on, as in /proc/self/mounts; "" if unknown."""
    best = ("", "")
    target = folder.resolve()
    lines = mounts.read_text(errors="replace").splitlines() if mounts.exists() else []
    for _, point, kind, *_ in (line.split(" ") for line in lines):
        mounted_on = point.replace("\\040", " ")
        if target.is_relative_to(mounted_on) and len(mounted_on) >= len(best[0]):
            best = (mounted_on, kind)
    return best[1]
