"""Puts pictures on the disk."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # half a second to import
    from matplotlib.figure import Figure


def save_figure(
    figure: "Figure", path: Path, *, dpi: int = 120, metadata: Mapping[str, str] | None = None
) -> None:
    """Draw `figure` into `path`, as its ending says: a reader finds the old picture or the new one, whole.

    Raises OSError that names `path`, for instance when no space is left; nothing else then stays beside it.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(scratch, format=path.suffix.removeprefix("."), dpi=dpi, metadata=metadata)
        scratch.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            scratch.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write: {error.strerror or error}", str(path)) from error
