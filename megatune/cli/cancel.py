"""`megatune cancel`."""

from pathlib import Path

from rich.text import Text

from megatune.errors import UserError
from megatune.launch.find_run import find_run
from megatune.launch.slurm.cancel import cancel_jobs
from megatune.launch.slurm.command import Call, call
from megatune.launch.slurm.history import jobs_of
from megatune.report.tables import show


def cancel_run(run: Path, *, now: bool, as_json: bool, call: Call = call) -> int:
    """Cancel the jobs of a run and say what was done to each. Exit code 0."""
    folder = find_run(run)
    jobs = jobs_of(folder.path)
    if not jobs:
        raise UserError(
            f"no job of {folder.path} was submitted. A run that was started by hand stops with Ctrl-C, or with "
            "SIGTERM to `megatune train`."
        )
    done = cancel_jobs(folder.path, jobs, now=now, call=call)
    active = [entry for entry in done if entry.was_active]
    answer = {
        "schema": 1,
        "run": str(folder.path),
        "jobs": [
            {"job_id": entry.job_id, "done": entry.done, "was_active": entry.was_active} for entry in done
        ],
    }
    lines = [Text(f"job {entry.job_id}: {entry.done}") for entry in active]
    show(answer, *(lines or [Text(f"{folder.path}: no job waits or runs")]), as_json=as_json)
    return 0
