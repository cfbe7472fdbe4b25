"""A run as it stands now: Slurm's word about its jobs, and how far its metrics say it has come."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatune.errors import MegatuneError
from megatune.launch.checkpoints import MANIFEST, folder_name, newest_saved_step
from megatune.launch.digest import Digest, digest_run
from megatune.launch.processes import STOPPED_BUT_SAVED
from megatune.launch.run_folder import RunFolder
from megatune.launch.slurm.command import Call, call
from megatune.launch.slurm.history import SubmittedJob, jobs_of
from megatune.launch.slurm.jobs import JobReport, look_up
from megatune.launch.slurm.states import Stage
from megatune.report.metrics import read_metrics
from megatune.report.standing import Standing, standing

FINISHED, SAVED = "FINISHED", "SAVED"
"""States of a run without a job that its own stop record tells: all steps done; stopped early and saved."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run now. None is unknown."""

    folder: RunFolder
    jobs: tuple[JobReport, ...]
    """All that were handed in, in order; none for a run that was started by hand."""
    standing: Standing
    checkpoint_step: int | None
    """The newest whole checkpoint that is still there."""
    checkpoint_saved_at: datetime | None
    digest: Digest | None = None

    @property
    def job(self) -> JobReport | None:
        """The job to look at: the one that runs, else the next to run, else the last."""
        running = [
            job for job in self.jobs if job.is_active and job.state and job.state.stage is Stage.RUNNING
        ]
        active = [job for job in self.jobs if job.is_active]
        return next(iter([*running, *active, *reversed(self.jobs)]), None)

    @property
    def state(self) -> str | None:
        """Slurm's name of the job's state; without a job, FINISHED or SAVED when the run has said so."""
        job = self.job
        if job is not None:
            return job.state.name if job.state else None
        return (
            {0: FINISHED, STOPPED_BUT_SAVED: SAVED}.get(self.standing.stop_code or 0)
            if self._has_stopped
            else None
        )

    @property
    def is_active(self) -> bool:
        """Whether a job of the run waits or runs."""
        return any(job.is_active for job in self.jobs)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen to it, as far as is known."""
        if self.jobs:
            return all(job.has_ended for job in self.jobs)
        return self._has_stopped

    @property
    def has_failed(self) -> bool:
        """Whether its job has ended, and not well."""
        return not self.is_active and self.job is not None and self.job.has_failed

    @property
    def reason_text(self) -> str | None:
        """Why it waits, or why it stopped, in words."""
        if self.job is not None and self.job.is_active:
            return self.job.reason_text
        return self.standing.stop_reason

    @property
    def time_left_s(self) -> int | None:
        """Seconds until the job's limit; of a job that waits, its whole limit."""
        job = self.job
        if job is None or not job.is_active or job.state is None:
            return None
        return job.time_limit_s if job.state.stage is Stage.WAITING else job.time_left_s

    @property
    def margin_s(self) -> float | None:
        """Seconds between the end of the steps and the job's limit; negative when it ends after the limit."""
        left, eta = self.time_left_s, self.standing.eta_s
        return None if left is None or eta is None else left - eta

    @property
    def more_jobs_needed(self) -> int | None:
        """How many jobs of the same length must follow this one, at least."""
        limit = self.job.time_limit_s if self.job else None
        if self.margin_s is None or not limit:
            return None
        return max(0, math.ceil(-self.margin_s / limit))

    @property
    def restarts(self) -> int | None:
        """How often it was started again: by Slurm's accounts, else by the run's own word."""
        told = [
            count for count in (self.job.restarts if self.job else None, self.standing.restart_count) if count
        ]
        known = self.job is not None and self.job.restarts is not None
        return max(told) if told else 0 if known or self.standing.restart_count is not None else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Why something is unknown, and what is odd."""
        job = self.job
        if job is None:
            return () if self._has_stopped else ("no job was submitted: whether it runs is not known",)
        went_on = job.failed_step and job.state is not None and job.state.stage is Stage.DONE
        odd = (f"the script went on although its step failed: {job.failed_step}",) if went_on else ()
        return (*job.notes, *odd)

    @property
    def _has_stopped(self) -> bool:
        return self.standing.stop_code is not None

    def as_object(self, now: datetime) -> dict[str, Any]:
        """For `--json`; the keys are those of docs/status.md."""
        job, progress = self.job, self.standing
        return {
            "run": str(self.folder.path),
            "job_id": job.job_id if job else None,
            "cluster": job.cluster if job else None,
            "state": self.state,
            "state_text": job.state.meaning if job and job.state else None,
            "reason": job.reason if job else None,
            "reason_text": self.reason_text,
            "active": self.is_active,
            "nodes": job.nodes if job else None,
            "num_nodes": job.num_nodes if job else None,
            "exit_code": job.exit_code if job else None,
            "step": progress.step,
            "total_steps": progress.total_steps,
            "loss": progress.loss,
            "tokens_per_second": progress.tokens_per_second,
            "step_seconds": progress.step_seconds,
            "eta_s": progress.eta_s,
            "time_left_s": self.time_left_s,
            "time_limit_s": job.time_limit_s if job else None,
            "margin_s": self.margin_s,
            "more_jobs_needed": self.more_jobs_needed,
            "restarts": self.restarts,
            "goodput": progress.goodput.as_object() if progress.goodput else None,
            "slow_ranks": dict(progress.slow_ranks),
            "checkpoint_step": self.checkpoint_step,
            "checkpoint_age_s": seconds_since(self.checkpoint_saved_at, now),
            "last_record_age_s": seconds_since(progress.last_record_at, now),
            "stop_reason": progress.stop_reason,
            "stop_code": progress.stop_code,
            "jobs": [_job_object(report) for report in self.jobs],
            "notes": list(self.notes),
            "digest": self.digest.as_object() if self.digest else None,
        }


def run_statuses(
    folders: Sequence[RunFolder],
    *,
    with_digest: bool = False,
    call: Call = call,
    problems: list[str] | None = None,
) -> list[RunStatus]:
    """The status of each run; Slurm is asked once for all of them.

    `with_digest`: say of failed ones why. A run with a broken file is left out, and told in `problems`; without
    those it raises MegatuneError.
    """
    jobs, standings = dict[RunFolder, list[SubmittedJob]](), dict[RunFolder, Standing]()
    for folder in folders:
        try:
            jobs[folder], standings[folder] = jobs_of(folder.path), _standing_of(folder)
        except MegatuneError as error:
            if problems is None:
                raise
            problems.append(str(error))
    reports = look_up([job for own in jobs.values() for job in own], call)
    return [
        _status(folder, progress, [reports[job] for job in jobs[folder]], with_digest=with_digest)
        for folder, progress in standings.items()
    ]


def _standing_of(folder: RunFolder) -> Standing:
    if not folder.metrics.is_file():
        return Standing()
    try:
        return standing(read_metrics(folder.metrics))
    except (KeyError, TypeError) as error:
        raise MegatuneError(
            f"{folder.metrics} has a line that no run wrote ({type(error).__name__}: {error}). Delete it."
        ) from error


def seconds_since(moment: datetime | None, now: datetime) -> float | None:
    """Seconds from `moment` to `now`, at least 0: clocks of two machines differ a little."""
    return None if moment is None else max(0.0, (now - moment).total_seconds())


def utc_now() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)


def _status(
    folder: RunFolder, progress: Standing, reports: Sequence[JobReport], *, with_digest: bool
) -> RunStatus:
    saved = [entry for entry in progress.saves if _is_whole(folder.checkpoints, entry[0])]
    step, saved_at = saved[-1] if saved else (None, None)
    newest = newest_saved_step(folder.checkpoints)
    if newest > (-1 if step is None else step):  # its ranks were killed before they told
        step, saved_at = newest, _written_at(folder.checkpoints / folder_name(newest) / MANIFEST)
    found = RunStatus(
        folder=folder,
        jobs=tuple(reports),
        standing=progress,
        checkpoint_step=step,
        checkpoint_saved_at=saved_at,
    )
    if not with_digest or not _wants_digest(found):
        return found
    digest = _digest(found)
    return found if digest is None else replace(found, digest=digest)


def _wants_digest(status: RunStatus) -> bool:
    return status.has_failed or (not status.jobs and status.standing.stop_code is None)


def _digest(status: RunStatus) -> Digest | None:
    job = status.job
    if job is not None:
        return digest_run(
            status.folder, job_id=job.job_id, state=job.state.name if job.state else None, reason=job.reason
        )
    found = digest_run(status.folder)
    # A run by hand that has written no end may well be running: only a cause that shows is a failure.
    return None if found.cause.name == "unknown" else found


def _is_whole(checkpoints: Path, step: int) -> bool:
    return (checkpoints / folder_name(step) / MANIFEST).is_file()


def _written_at(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _job_object(job: JobReport) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "cluster": job.cluster,
        "state": job.state.name if job.state else None,
        "reason": job.reason,
        "exit_code": job.exit_code,
        "restarts": job.restarts,
        "ended_at": job.ended_at,
    }
