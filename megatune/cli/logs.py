"""`megatune logs`."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from megatune.errors import UserError
from megatune.launch import rank_logs
from megatune.launch.find_run import find_run
from megatune.launch.follow import added, last_lines
from megatune.launch.run_folder import RunFolder
from megatune.launch.run_status import RunStatus, run_statuses
from megatune.launch.slurm.command import Call, call

_POLL_S = 0.5
_ASK_EVERY = 20  # polls: Slurm is asked every 10 s whether the job has ended


def show_logs(
    run: Path,
    *,
    rank: int | None,
    follow: bool,
    num_lines: int,
    call: Call = call,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Print the end of a log; with `follow`, what is added until the job ends or Ctrl-C. Exit code 0.

    The log of `rank`; without one that of rank 0, which shows the progress, else the job's own.
    """
    if num_lines < 0:
        raise UserError(f"megatune logs: --lines is {num_lines}; use 0 or more.")
    folder = find_run(run)
    (status,) = run_statuses([folder], call=call)
    path = _choose(folder, rank, status)
    if not path.is_file() and not (follow and status.is_active):
        raise UserError(_nothing_there(folder, path, rank, status))
    print(f"megatune: {path}", file=sys.stderr, flush=True)
    tail, end = last_lines(path, num_lines) if path.is_file() else (b"", 0)
    _write(tail)
    if follow:
        _follow(path, end, folder, call, sleep)
    return 0


def _choose(folder: RunFolder, rank: int | None, status: RunStatus) -> Path:
    first = rank_logs.log_path(folder.logs, 0)
    if rank is not None:
        return rank_logs.log_path(folder.logs, rank)
    if first.is_file() or status.job is None:
        return first
    return folder.logs / f"job-{status.job.job_id}.log"


def _nothing_there(folder: RunFolder, path: Path, rank: int | None, status: RunStatus) -> str:
    there = sorted(found.name for found in folder.logs.glob("*.log"))
    if rank is not None and there:
        shown = ", ".join(there[:3]) + (f", ... {there[-1]}" if len(there) > 3 else "")
        return f"{folder.path} has no log of rank {rank}; there are {shown}."
    job = status.job
    waits = f" Its job {job.job_id} {job.state.meaning}." if job is not None and job.state else ""
    return (
        f"{path} is not there yet.{waits} `megatune logs -f` waits for the log of a job that has not ended."
    )


def _follow(path: Path, end: int, folder: RunFolder, call: Call, sleep: Callable[[float], None]) -> None:
    polls = 0

    def wait() -> bool:
        nonlocal polls
        sleep(_POLL_S)
        polls += 1
        if polls % _ASK_EVERY:
            return True
        (status,) = run_statuses([folder], call=call)
        return not status.has_ended

    try:
        for data in added(path, end, wait=wait):
            _write(data)
    except KeyboardInterrupt:
        return  # that is how one stops following


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
