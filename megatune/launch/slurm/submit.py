"""Hand a job in: write what it needs into the run folders, call sbatch, remember the job."""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from megatune.config import resolved_yaml
from megatune.errors import ConfigError, MegatuneError, SubmitError
from megatune.launch.run_folder import RunFolder
from megatune.launch.slurm.command import Call
from megatune.launch.slurm.history import SubmittedJob, jobs_of, remember_job, remember_run
from megatune.launch.slurm.queue import ask_queue
from megatune.launch.slurm.request import JobRequest, RunToSubmit

SUBMITTED_FILE = "submitted.yaml"
_JOB = re.compile(r"(?P<id>\d+)(;(?P<cluster>[\w.-]+))?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class HandedIn:
    """One job that Slurm has taken."""

    job_id: str
    cluster: str | None
    depends_on: str | None


def hand_in(script: Path, *, depends_on: str | None = None, call: Call) -> HandedIn:
    """Give `script` to sbatch. `depends_on`: the job that must end first, however it ends.

    Raises SubmitError when Slurm refuses it, or gives an answer that is none.
    """
    after = [] if depends_on is None else [f"--dependency=afterany:{depends_on}"]
    answer = call(["sbatch", "--parsable", *after, str(script)])
    if answer.code != 0:
        raise SubmitError(
            f"sbatch refused {script} (exit {answer.code}): {answer.err.strip() or answer.out.strip()}"
        )
    # A site's own wrapper may greet first; the id is the last line.
    lines = answer.out.strip().splitlines()
    found = _JOB.fullmatch(lines[-1].strip()) if lines else None
    if found is None:
        raise SubmitError(
            f"sbatch took {script}, but gave {answer.out.strip()!r} for a job id. Look for the job with "
            "`squeue --me` before you submit again."
        )
    return HandedIn(job_id=found["id"], cluster=found["cluster"], depends_on=depends_on)


def active_jobs(folder: Path, call: Call) -> list[SubmittedJob]:
    """The jobs of a run that wait or run, in the order of their submission. Asks squeue when there were any."""
    jobs = jobs_of(folder)
    active = []
    for cluster in dict.fromkeys(job.cluster for job in jobs):
        own = [job for job in jobs if job.cluster == cluster]
        queued = ask_queue([job.job_id for job in own], cluster, call)
        active += [job for job in own if job.job_id in queued and queued[job.job_id].state.is_active]
    return sorted(active, key=jobs.index)


def refuse_active(folders: Sequence[Path], call: Call) -> None:
    """Raise ConfigError when one of the runs has a job in the queue: two would write into one folder."""
    problems = [
        f"{folder} has job {', '.join(job.job_id for job in jobs)} in the queue already. Wait for it, end it with "
        f"`megatune cancel {shlex.quote(str(folder))}`, add jobs behind it with --chain, or choose another "
        "train.output_dir."
        for folder in folders
        if (jobs := active_jobs(folder, call))
    ]
    if problems:
        raise ConfigError(problems, source="megatune submit")


def submitted_yaml(run: RunToSubmit, request: JobRequest) -> str:
    """The run file that the job's ranks read: every key resolved, and the layout of the job in it."""
    loaded = run.loaded
    layout = {"nodes": request.nodes, "nproc_per_node": request.tasks_per_node}
    launch = loaded.run.launch.model_copy(update=layout)
    resolved = replace(
        loaded,
        run=loaded.run.model_copy(update={"launch": launch}),
        origins={**loaded.origins, **{f"launch.{key}": "megatune submit" for key in layout}},
    )
    return f"# Relative paths begin at {request.working_dir}\n{resolved_yaml(resolved)}"


def write_job(runs: Sequence[RunToSubmit], request: JobRequest, script: str) -> Path:
    """Write each run's file and the script into the run folders. Returns the script that sbatch gets."""
    for run in runs:
        folder = RunFolder(run.folder)
        folder.create()
        folder.write_text_atomic(SUBMITTED_FILE, submitted_yaml(run, request))
        folder.write_text_atomic(folder.job_script.name, script)
    return RunFolder(runs[0].folder).job_script


def submit_jobs(
    runs: Sequence[RunToSubmit],
    request: JobRequest,
    script: str,
    *,
    num_jobs: int,
    after: str | None,
    call: Call,
    say: Callable[[str], None],
) -> list[HandedIn]:
    """Write everything and hand in `num_jobs` jobs, each after the one before; the first after `after`.

    Every job is remembered as soon as Slurm has taken it, so that a failure half-way loses none. say: told of runs
    that could not be put on the user's list. Raises SubmitError, with the jobs that Slurm has taken.
    """
    path = write_job(runs, request, script)
    if after is None:  # a request of its own, and no more jobs for one that is under way
        for run in runs:
            RunFolder(run.folder).begun.unlink(missing_ok=True)
    handed_in: list[HandedIn] = []
    for _ in range(num_jobs):
        try:
            job = hand_in(path, depends_on=handed_in[-1].job_id if handed_in else after, call=call)
        except SubmitError as error:
            raise SubmitError(f"{error}{_already(handed_in, num_jobs)}") from error
        handed_in.append(job)
        _remember(runs, job, request.time_limit_s)
        if len(handed_in) == 1:
            _list(runs, say)
    return handed_in


def _list(runs: Sequence[RunToSubmit], say: Callable[[str], None]) -> None:
    try:
        for run in runs:
            remember_run(run.folder)
    except (OSError, MegatuneError) as error:
        say(f"note: not all runs are on the list of `megatune status`, which names them when asked: {error}")


def _already(handed_in: Sequence[HandedIn], num_jobs: int) -> str:
    if not handed_in:
        return ""
    ids = ", ".join(job.job_id for job in handed_in)
    return (
        f" Slurm has taken {len(handed_in)} of {num_jobs} jobs before: {ids}. They stay; `megatune submit --chain "
        f"{num_jobs - len(handed_in)}` adds the others behind them."
    )


def _remember(runs: Sequence[RunToSubmit], job: HandedIn, limit_s: int | None) -> None:
    """Leave `job` in the folder of each run. Raises SubmitError naming those that do not take it."""
    submitted_at, problems = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), []
    for task, run in enumerate(runs):
        job_id = job.job_id if len(runs) == 1 else f"{job.job_id}_{task}"
        submitted = SubmittedJob(
            job_id=job_id,
            cluster=job.cluster,
            submitted_at=submitted_at,
            time_limit_s=limit_s,
            depends_on=job.depends_on,
        )
        try:
            remember_job(run.folder, submitted)
        except OSError as error:
            problems.append(f"{run.folder} ({error.strerror})")
    if problems:
        raise SubmitError(
            f"Slurm has taken job {job.job_id}, and its id could not be written into {', '.join(problems)}: "
            f"megatune does not know of it. End it with `scancel {job.job_id}`, or do not submit again before its end."
        )


def without_requeue(request: JobRequest) -> JobRequest:
    """The request for a job of a chain: the next job goes on, so that this one does not come back itself."""
    return replace(request, requeue="none")


def log_path(folder: Path, job_id: str) -> Path:
    """Where the batch script of a job writes. An array's task has its own id, as in `12_3`."""
    return RunFolder(folder).logs / f"job-{job_id}.log"


def as_mapping(job: HandedIn, runs: Sequence[RunToSubmit]) -> Mapping[str, object]:
    """For `--json`."""
    ids = [job.job_id if len(runs) == 1 else f"{job.job_id}_{task}" for task in range(len(runs))]
    return {
        "job_id": job.job_id,
        "cluster": job.cluster,
        "depends_on": job.depends_on,
        "runs": [
            {"run": str(run.folder), "job_id": job_id, "log": str(log_path(run.folder, job_id))}
            for run, job_id in zip(runs, ids, strict=True)
        ],
    }
