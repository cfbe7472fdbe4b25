"""What `megatune search` and `megatune tune` print of the trials that have ended."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from megatune.report.tables import show

Views = Callable[[str | None, str | None], Sequence[RenderableType]]
"""(path of the best run file, path of the picture) -> what is shown to people."""


def show_found(
    found: dict[str, Any],
    views: Views,
    *,
    folder: Path,
    best_file: Path | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Print `found`, with the files that were written of it; None where there is nothing to write yet."""
    best, drawn = (None if path is None else str(path) for path in (best_file, picture))
    answer = {"schema": 1, "folder": str(folder), **found, "best_file": best, "picture": drawn}
    show(answer, *views(best, drawn), as_json=as_json)
