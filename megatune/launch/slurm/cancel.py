"""Ends the jobs of a run: what runs saves and stops, what waits leaves the queue.

A running job is told with SIGTERM to its steps alone: the ranks save, exit 75, and the batch script
asks `is_cancelled`'s file before it queues itself again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatune.errors import SubmitError
from megatune.launch.slurm.command import Call, call
from megatune.launch.slurm.history import SubmittedJob
from megatune.launch.slurm.queue import QueuedJob, ask_queue
from megatune.launch.slurm.states import Stage

_ENDED_MEANWHILE = re.compile(r"already (completing or )?(completed|finished)|Invalid job id", re.IGNORECASE)
CANCELLED_FILE = "cancelled"
"""In the run folder: ids of jobs that must not be queued again, one a line. The batch script reads it."""


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """What was done to one job."""

    job_id: str
    done: str
    """In words."""
    was_active: bool


def cancel_jobs(
    run_folder: Path, jobs: Sequence[SubmittedJob], *, now: bool, call: Call = call
) -> list[Cancelled]:
    """Cancel all of `jobs` that wait or run; what was done to each, waiting ones first.

    `now`: do not let a running job save. Raises SubmitError when Slurm cannot be asked, and after
    all were tried when it refused one.
    """
    queued: dict[str, QueuedJob] = {}
    for cluster in dict.fromkeys(job.cluster for job in jobs):
        queued |= ask_queue([job.job_id for job in jobs if job.cluster == cluster], cluster, call)
    active = [job for job in jobs if job.job_id in queued and queued[job.job_id].state.is_active]
    # Before anything ends: a job of a chain starts when the one before it does.
    for job in active:
        _forbid_requeue(run_folder, job)
    waiting = [job for job in active if queued[job.job_id].state.stage is Stage.WAITING]
    problems: list[str] = []
    found = []
    for job in [*waiting, *(job for job in active if job not in waiting)]:
        try:
            found.append(_cancel(job, now=now, waits=job in waiting, call=call))
        except SubmitError as error:
            problems.append(str(error))
    if problems:
        raise SubmitError("\n".join(problems))
    ended = [job for job in jobs if job not in active]
    return [*found, *(Cancelled(job_id=job.job_id, done="had ended", was_active=False) for job in ended)]


def is_cancelled(run_folder: Path, job_id: str) -> bool:
    """Whether this job was cancelled and is not to be queued again."""
    path = run_folder / CANCELLED_FILE
    return path.is_file() and job_id in path.read_text(encoding="utf-8").split()


def _forbid_requeue(run_folder: Path, job: SubmittedJob) -> None:
    if is_cancelled(run_folder, job.job_id):
        return
    with (run_folder / CANCELLED_FILE).open("a", encoding="utf-8") as file:
        file.write(f"{job.job_id}\n")


def _cancel(job: SubmittedJob, *, now: bool, waits: bool, call: Call) -> Cancelled:
    if now:
        _ask("scancel", [job.job_id], job, call)
        return Cancelled(job_id=job.job_id, done="cancelled at once", was_active=True)
    if waits:
        # Only while it waits: one that has started since the queue was asked must save first.
        _ask("scancel", ["--state=PENDING", job.job_id], job, call)
        again = ask_queue([job.job_id], job.cluster, call).get(job.job_id)
        if again is None or again.state.stage is not Stage.RUNNING:
            return Cancelled(job_id=job.job_id, done="taken out of the queue", was_active=True)
    # Slurm itself would queue it again when a node fails while it saves.
    _ask("scontrol", ["update", f"JobId={job.job_id}", "Requeue=0"], job, call)
    _ask("scancel", ["--signal=TERM", job.job_id], job, call)
    return Cancelled(
        job_id=job.job_id, done="asked to save and stop; it will not be queued again", was_active=True
    )


def _ask(program: str, arguments: Sequence[str], job: SubmittedJob, call: Call) -> None:
    where = [f"--clusters={job.cluster}"] if job.cluster else []
    answer = call([program, *where, *arguments])
    if answer.code != 0 and not _ENDED_MEANWHILE.search(answer.err):
        said = answer.err.strip() or answer.out.strip() or "it said nothing"
        raise SubmitError(f"{program} {' '.join(arguments)} failed (exit {answer.code}): {said}")
