"""Workers of `megatune tune`, `search` and `bench`, here or handed in, and what they have found."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from megatune.launch.processes import STOPPED_BUT_SAVED
from megatune.launch.slurm.submit import HandedIn
from megatune.launch.slurm.workers_job import WorkersJob
from megatune.report.tables import show
from megatune.tune.trial import StopSignals

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


def work(make_trials: Callable[[StopSignals], int], command: str) -> int:
    """Make trials here, until none is left or a signal comes. Returns the exit code."""
    with StopSignals() as stop:
        code = make_trials(stop)
    if code == STOPPED_BUT_SAVED:
        print(f"megatune: stopped; the same command goes on with the {command}", file=sys.stderr)
    return code


def show_handed_in(
    job: HandedIn, workers: WorkersJob, counts: dict[str, int], *, words: str, afterwards: str, as_json: bool
) -> int:
    """Print that Slurm has taken the workers. `afterwards`: how to see what they found. Returns 0."""
    answer = {
        "schema": 1,
        "folder": str(workers.folder),
        "job_id": job.job_id,
        "cluster": job.cluster,
        **counts,
    }
    lines = [f"submitted job {job.job_id}: {words}", f"logs: {workers.logs}", afterwards]
    show(answer, *map(Text, lines), as_json=as_json)
    return 0
