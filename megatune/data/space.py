"""Tell a full disk as what it is."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from megatune.errors import DataError
from megatune.units import format_bytes

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Of an OSError: the disk, or what a user may take of it, is used up."""
_PREPARED_FIX = (
    "It takes 5 bytes a token, twice while it is made, and as much as the source again for hub data. Free some, or "
    "choose another train.output_dir"
)


@contextmanager
def full_disk_named(what: str, folder: Path, *, fix: str) -> Iterator[None]:
    """Turn "no space left" inside the block into a DataError with the folder, the free space and the fix.

    what: what was being done, after "to". A file as `folder` stands for the folder it will be in.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        free = f"{_free(folder)} free; a quota may be lower"
        raise DataError(f"no space left to {what} in {folder.resolve()} ({free}). {fix}") from error


def writing_prepared(folder: Path) -> AbstractContextManager[None]:
    """A block in which prepared data is written to `folder`."""
    return full_disk_named("prepare data", folder, fix=_PREPARED_FIX)


def _free(folder: Path) -> str:
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    return format_bytes(shutil.disk_usage(there).free)
