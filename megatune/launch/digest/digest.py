"""The digest of a failed start: what happened, where, the evidence, and the next thing to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from megatune.launch.culprit import Guilt, guilt
from megatune.launch.digest.cause import Cause
from megatune.launch.digest.classify import (
    Clue,
    FailedRank,
    culprit_of,
    failed_ranks,
    find_clues,
    silent_rank,
)
from megatune.launch.digest.evidence import Evidence, quote, shown, time_of
from megatune.launch.digest.logs import Line, Log, StartLogs, read_last_start
from megatune.launch.digest.program_causes import STOPPED, UNKNOWN
from megatune.launch.processes import STOPPED_BUT_SAVED, describe_exit
from megatune.launch.run_folder import RunFolder
from megatune.report.metrics import read_metrics

_MAX_EVIDENCE = 4
_LAST_LINES_QUOTED = 8


@dataclass(frozen=True, kw_only=True)
class Digest:
    """Why a start failed. None is unknown."""

    cause: Cause
    rank: int | None
    """The rank that failed first; None when it befell the whole job."""
    num_ranks: int | None
    node: str | None
    exit_code: int | None
    """Of that rank; negative for a signal."""
    time: datetime | None
    """When, in UTC: by the evidence itself, or when that rank's log was last written to."""
    step: int | None
    """The last step that is in the metrics."""
    total_steps: int | None
    job_id: str | None
    state: str | None
    """The job's state as Slurm gives it."""
    evidence: tuple[Evidence, ...]
    silent_rank: int | None = None
    """The one rank that ended without a word while the others complain about lost connections."""

    def as_object(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "class": self.cause.name,
            "summary": self.summary,
            "meaning": self.cause.meaning,
            "next_step": self.cause.next_step,
            "rank": self.rank,
            "num_ranks": self.num_ranks,
            "node": self.node,
            "exit_code": self.exit_code,
            "time": self.time.strftime("%Y-%m-%dT%H:%M:%SZ") if self.time else None,
            "step": self.step,
            "total_steps": self.total_steps,
            "job_id": self.job_id,
            "state": self.state,
            "silent_rank": self.silent_rank,
            "evidence": [line.as_object() for line in self.evidence],
        }

    @property
    def summary(self) -> str:
        """One sentence: what, where and when."""
        subject = self._job
        if self.rank is not None:
            subject = f"rank {self.rank}" + (f" of {self.num_ranks}" if self.num_ranks else "")
            subject += f" on {self.node}" if self.node else ""
        what = self.cause.what
        if self.rank is None and self.node is not None:
            what += f" ({self.node})"
        if self.exit_code is not None and self.cause is UNKNOWN:
            what += f": it {describe_exit(self.exit_code)}"
        moment = f" at {self.time:%Y-%m-%d %H:%M:%S} UTC" if self.time else ""
        done = "" if self.step is None else f", after step {self.step} of {self.total_steps or 'n/a'}"
        return f"{subject} {what}{moment}{done}"

    @property
    def text(self) -> str:
        """The paragraph for people, with its evidence."""
        lines = [f"{self.cause.name}: {self.summary}. {self.cause.meaning}"]
        lines += [f"  {line}" for line in self.evidence]
        if self.silent_rank is not None:
            lines.append(f"Rank {self.silent_rank} ended without a word: look at its log first.")
        return "\n".join([*lines, f"Next: {self.cause.next_step}"])

    @property
    def _job(self) -> str:
        return f"job {self.job_id}" if self.job_id else "the run"


@dataclass(frozen=True, kw_only=True)
class _Start:
    """All there is to know about a start."""

    logs: StartLogs
    ranks: Sequence[FailedRank]
    metrics: Sequence[Mapping[str, Any]]
    job_id: str | None
    state: str | None

    def digest(
        self,
        cause: Cause,
        evidence: Sequence[Evidence],
        *,
        rank: FailedRank | None,
        node: str | None = None,
        best: Clue | None = None,
    ) -> Digest:
        """The digest that says `cause`, which befell `rank` or, if None, the whole job."""
        steps = [entry["step"] for entry in self.metrics if entry.get("event") == "step"]
        runs = [entry for entry in self.metrics if entry.get("event") == "run"]
        return Digest(
            cause=cause,
            rank=rank.rank if rank else None,
            num_ranks=self.logs.num_ranks,
            node=rank.node if rank else node,
            exit_code=rank.code if rank else None,
            time=_time_of(best, rank),
            step=steps[-1] if steps else None,
            total_steps=runs[-1].get("total_steps") if runs else None,
            job_id=self.job_id,
            state=self.state,
            evidence=tuple(evidence),
            silent_rank=silent_rank(self.ranks) if cause.is_secondary else None,
        )


def digest_run(
    folder: RunFolder, *, job_id: str | None = None, state: str | None = None, reason: str | None = None
) -> Digest:
    """The digest of the last start in `folder`.

    `job_id`, `state`: the job of that start and how Slurm says it ended, if it was one; `reason`:
    Slurm's own words for it. Call it for a start that did not end well: it always finds something.
    Raises MegatuneError when metrics.jsonl cannot be read.
    """
    logs = read_last_start(folder.logs, job_id)
    start = _Start(
        logs=logs,
        ranks=failed_ranks(logs),
        metrics=read_metrics(folder.metrics) if folder.metrics.is_file() else [],
        job_id=job_id,
        state=state,
    )
    stop = _last_stop(start.metrics) if logs.began else None
    if stop is not None and stop.get("exit_code") == STOPPED_BUT_SAVED:
        word = Evidence(file=folder.metrics.name, line=None, text=shown(f"stop: {stop.get('reason')}"))
        return start.digest(STOPPED, [word], rank=None)
    culprit = culprit_of(start.ranks)
    slurm = [_slurm_evidence(job_id, state, reason)] if state is not None else []
    clues = find_clues(logs, start.ranks, state)
    if not clues:
        return start.digest(UNKNOWN, [*_last_lines(culprit, logs, folder.path), *slurm], rank=culprit)
    best = clues[0]
    same = [clue for clue in clues if clue.cause is best.cause]
    quoted = _quotes(same, culprit, logs, folder.path)
    node = next((clue.node for clue in same if clue.node), None)
    rank = None if best.cause.of_job else best.rank or _suspect(culprit, node)
    says_it_itself = state in best.cause.states or not quoted
    return start.digest(
        best.cause, [*quoted, *(slurm if says_it_itself else [])], rank=rank, node=node, best=best
    )


def _suspect(culprit: FailedRank | None, node: str | None) -> FailedRank | None:
    """The rank that something befell which no rank's own log says: the culprit, if it did not just lose a peer."""
    if culprit is None or guilt(culprit) >= Guilt.LOST_A_PEER:
        return None
    return culprit if node is None or culprit.node == node else None


def _time_of(best: Clue | None, culprit: FailedRank | None) -> datetime | None:
    if best is not None and best.line is not None and best.log is not None:
        found = time_of(best.line, best.log.written_at)
        if found is not None:
            return found
    return culprit.log.written_at if culprit else None


def _last_stop(metrics: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The stop record of the last start; None when it wrote none."""
    ends = [entry for entry in metrics if entry.get("event") in ("run", "stop")]
    return ends[-1] if ends and ends[-1]["event"] == "stop" else None


def _quotes(
    clues: Sequence[Clue], culprit: FailedRank | None, logs: StartLogs, run_folder: Path
) -> list[Evidence]:
    """The lines that show a cause; of lines that say the same, one. And how srun saw the culprit end."""
    found: dict[str, Evidence] = {}
    places = [(clue.line, clue.log) for clue in clues]
    if culprit is not None and culprit.end is not None:
        places.append((culprit.end.line, logs.job))
    for line, log in places:
        if line is not None and log is not None:
            found.setdefault(line.text, quote(line, log, run_folder))
    return list(found.values())[:_MAX_EVIDENCE]


def _last_lines(culprit: FailedRank | None, logs: StartLogs, run_folder: Path) -> list[Evidence]:
    newest = max(logs.ranks, key=lambda log: log.written_at, default=None)
    log: Log | None = culprit.log if culprit else logs.job or newest
    lines: list[Line] = [line for line in log.lines if line.text.strip()] if log else []
    found = [quote(line, log, run_folder) for line in lines[-_LAST_LINES_QUOTED:]] if log else []
    if culprit is not None and culprit.end is not None and logs.job is not None:
        found.append(quote(culprit.end.line, logs.job, run_folder))
    return found


def _slurm_evidence(job_id: str | None, state: str | None, reason: str | None) -> Evidence:
    told = f" ({reason})" if reason and reason != "None" else ""
    return Evidence(file="Slurm", line=None, text=f"job {job_id} is {state}{told}")
