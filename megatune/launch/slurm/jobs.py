"""What Slurm knows about submitted jobs: the queue is asked first, then accounting."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from megatune.errors import SubmitError
from megatune.launch.slurm.accounting import Account, Record, ask_accounting
from megatune.launch.slurm.command import Call, call
from megatune.launch.slurm.history import SubmittedJob
from megatune.launch.slurm.queue import QueuedJob, ask_queue
from megatune.launch.slurm.reasons import reason_in_words
from megatune.launch.slurm.states import JobState, Stage

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """One job of a run as Slurm sees it now. None is unknown."""

    job_id: str
    cluster: str | None
    state: JobState | None = None
    reason: str | None = None
    """Slurm's code for why it waits."""
    nodes: str | None = None
    num_nodes: int | None = None
    time_left_s: int | None = None
    time_limit_s: int | None = None
    exit_code: str | None = None
    restarts: int | None = None
    ended_at: str | None = None
    """ISO 8601, UTC."""
    failed_step: str | None = None
    """The last step, when it failed although the job did not: a script that went on."""
    notes: tuple[str, ...] = ()
    """Why something is unknown."""

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return self.state is not None and self.state.is_active

    @property
    def has_failed(self) -> bool:
        """Whether it has ended, and not well."""
        if self.state is None:
            return False
        return self.state.stage is Stage.FAILED or (not self.is_active and self.failed_step is not None)

    @property
    def has_ended(self) -> bool:
        """Whether Slurm says that it has ended."""
        return self.state is not None and self.state.stage in (Stage.DONE, Stage.FAILED)

    @property
    def reason_text(self) -> str | None:
        """Why it waits, in words."""
        waits = self.state is not None and self.state.stage is Stage.WAITING
        return reason_in_words(self.reason) if waits else None


def look_up(jobs: Sequence[SubmittedJob], call: Call = call) -> dict[SubmittedJob, JobReport]:
    """A report for each of `jobs`. One question to each of Slurm's programs a cluster.

    A program that cannot be asked, or answers nonsense, becomes a note of the reports: what the
    other one knows, and the run folder, is still worth showing.
    """
    found: dict[SubmittedJob, JobReport] = {}
    for cluster in dict.fromkeys(job.cluster for job in jobs):
        own = [job for job in jobs if job.cluster == cluster]
        reports = _look_up_on([job.job_id for job in own], cluster, call)
        found |= {job: reports[job.job_id] for job in own}
    return found


def _look_up_on(job_ids: Sequence[str], cluster: str | None, call: Call) -> dict[str, JobReport]:
    notes: list[str] = []
    queued: Mapping[str, QueuedJob] = {}
    accounts: Mapping[str, Account] | None = None
    try:
        queued = ask_queue(job_ids, cluster, call)
    except SubmitError as error:
        notes.append(str(error))
    try:
        accounts = ask_accounting(job_ids, cluster, call)
        if accounts is None:
            notes.append("this cluster keeps no accounts: Slurm forgets a job some minutes after its end")
    except SubmitError as error:
        notes.append(str(error))
    return {
        job_id: _report(job_id, cluster, queued.get(job_id), (accounts or {}).get(job_id), notes)
        for job_id in job_ids
    }


def _report(
    job_id: str, cluster: str | None, queued: QueuedJob | None, account: Account | None, notes: Iterable[str]
) -> JobReport:
    last = account.starts[-1] if account else None
    own_notes = list(notes)
    if "+" in job_id:
        own_notes.append("heterogeneous jobs are not supported: only this component is looked at")
    if queued is None and last is None:
        own_notes.append(f"Slurm no longer knows job {job_id}" if not own_notes else "")
        return JobReport(job_id=job_id, cluster=cluster, notes=tuple(filter(None, own_notes)))
    # The queue is right about what it still has: accounts follow some seconds later.
    state = queued.state if queued else last.state if last else None
    return JobReport(
        job_id=job_id,
        cluster=cluster,
        state=state,
        reason=queued.reason if queued else None,
        nodes=_either(queued.nodes if queued else None, last.nodes if last else None),
        num_nodes=_either(queued.num_nodes if queued else None, last.num_nodes if last else None),
        time_left_s=queued.time_left_s if queued and state and state.is_active else None,
        time_limit_s=_either(queued.time_limit_s if queued else None, last.time_limit_s if last else None),
        exit_code=last.exit_code if last and not (state and state.is_active) else None,
        restarts=_restarts(account, state),
        ended_at=_end_of(last, state),
        failed_step=_failed_last_step(account),
        notes=tuple(own_notes if state is None or last is None else []),
    )


def _restarts(account: Account | None, state: JobState | None) -> int | None:
    """How often the job was started again. A start that has ended while the job waits is one of them."""
    if account is None:
        return None
    if state is not None and state.is_active:
        return sum(start.ended_at is not None for start in account.starts)
    return max(0, len(account.starts) - 1)


def _either(first: T | None, second: T | None) -> T | None:
    return second if first is None else first


def _end_of(last: Record | None, state: JobState | None) -> str | None:
    if last is None or last.ended_at is None or (state is not None and state.is_active):
        return None
    return last.ended_at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _failed_last_step(account: Account | None) -> str | None:
    """The last step if it failed. An earlier one may have been tried again, and is no failure then."""
    if account is None or not account.steps:
        return None
    last = account.steps[-1]
    return (
        f"{last.record_id} {last.state.name} ({last.exit_code})" if last.state.stage is Stage.FAILED else None
    )
