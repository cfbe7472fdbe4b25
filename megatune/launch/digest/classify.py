"""Finds the cause that explains a failed start best: everything that shows one is a clue, the strongest wins."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePath

from megatune.launch import rank_logs
from megatune.launch.culprit import USER_ERROR, Guilt, find_culprit, guilt
from megatune.launch.digest.cause import Cause
from megatune.launch.digest.evidence import time_of
from megatune.launch.digest.logs import Line, Log, StartLogs
from megatune.launch.digest.machine_causes import MACHINE_CAUSES
from megatune.launch.digest.program_causes import CONFIG, PROGRAM_CAUSES, SOFTWARE, USER_CODE
from megatune.launch.digest.srun import TaskEnd, task_ends
from megatune.launch.processes import GOOD_ENDS

CAUSES = (*MACHINE_CAUSES, *PROGRAM_CAUSES)
_LAST_LINES = 80  # a failure's own words stand near the end of a rank's log
_FRAME = re.compile(r'\s*File "(?P<file>[^"]+)", line \d+')
_RAISED = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning|StopIteration)\b.*")
_INSTALLED = ("site-packages", "dist-packages", "lib/python", "lib64/python", "<frozen")
_REMOTE_CODE = "transformers_modules"
_ENDED_FROM_OUTSIDE = re.compile(
    r"SignalException|KeyboardInterrupt|SystemExit|ChildFailedError|"
    r"DataLoader worker .*(?:exited unexpectedly|killed by signal: Terminated)"
)
_SLURMSTEPD = re.compile(r"slurmstepd(?:-(?P<node>[\w.\-]+))?: ")
_NODE_NAME = re.compile(r"(?:[Nn]ode failure on|^megatune: lost) (?P<node>[\w.\-,]+)")


@dataclass(frozen=True, kw_only=True)
class FailedRank:
    """A rank that did not end well: a `RankEnd` with its log."""

    log: Log
    code: int | None
    stopped_by_us: bool
    end: TaskEnd | None = None

    @property
    def rank(self) -> int:
        """Its number."""
        assert self.log.rank is not None, "made from a rank's log only"
        return self.log.rank

    @property
    def node(self) -> str | None:
        """The host it was on."""
        return self.log.host or (self.end.node if self.end else None)

    @property
    def output(self) -> str:
        """What it printed."""
        return self.log.text


@dataclass(frozen=True, kw_only=True)
class Clue:
    """Something that shows a cause. Without a `line` it is Slurm's own word, or how a rank ended."""

    cause: Cause
    log: Log | None = None
    line: Line | None = None
    rank: FailedRank | None = None
    node: str | None = None


def failed_ranks(logs: StartLogs) -> list[FailedRank]:
    """The ranks that did not end well, or of which it is not known, in the order in which they failed."""
    ends: dict[int, TaskEnd] = {}
    for end in task_ends(logs.job.lines) if logs.job else ():
        ends.setdefault(end.rank, end)
    order = list(ends)
    found = []
    for log in logs.ranks:
        assert log.rank is not None, "read_last_start gives ranks' logs"
        task = ends.get(log.rank)
        code = task.code if task else log.code
        if code not in GOOD_ENDS:
            found.append(
                FailedRank(log=log, code=code, stopped_by_us=bool(task and task.stopped_by_srun), end=task)
            )
    return sorted(found, key=lambda failed: _order(failed, order))


def culprit_of(ranks: Sequence[FailedRank]) -> FailedRank | None:
    """The rank that made the others fail; None when it is not known: several just fell silent, say."""
    if sum(guilt(failed) is Guilt.SILENT for failed in ranks) > 1:
        ranks = [failed for failed in ranks if guilt(failed) is not Guilt.SILENT]
    return find_culprit(ranks) if ranks else None


def silent_rank(ranks: Sequence[FailedRank]) -> int | None:
    """The one rank that ended without a word while others lost their connection to it; None if there is none."""
    silent = [failed.rank for failed in ranks if guilt(failed) is Guilt.SILENT]
    return silent[0] if len(silent) == 1 and len(ranks) > 1 else None


def find_clues(logs: StartLogs, ranks: Sequence[FailedRank], state: str | None) -> list[Clue]:
    """All clues there are, the best explanation first."""
    culprit = culprit_of(ranks)
    clues = [
        *_slurm_clues(state),
        *(_job_clues(logs.job, ranks) if logs.job else ()),
        *_refusal_clues(logs),
        *(clue for failed in ranks for clue in _rank_clues(failed)),
    ]
    by_rank = {failed.rank: number for number, failed in enumerate(ranks)}

    def strength(clue: Clue) -> tuple[int, bool, bool, bool, int, int]:
        return (
            clue.cause.weight,
            clue.line is None,  # a line says more than a state
            clue.rank is not culprit,
            clue.log is logs.job,  # which often only repeats it
            guilt(clue.rank) if clue.rank else Guilt.USER_ERROR,
            by_rank[clue.rank.rank] if clue.rank else 0,
        )

    return sorted(clues, key=strength)  # stable: the first line of a log stays the first


def _order(failed: FailedRank, known: Sequence[int]) -> tuple[int, datetime, int]:
    place = known.index(failed.rank) if failed.rank in known else len(known)
    times = (time_of(line, failed.log.written_at) for line in _failure_lines(failed.log))
    return place, next(filter(None, times), failed.log.written_at), failed.rank


def _slurm_clues(state: str | None) -> Iterator[Clue]:
    for cause in MACHINE_CAUSES:
        if state in cause.states:
            yield Clue(cause=cause)


def _job_clues(job: Log, ranks: Sequence[FailedRank]) -> Iterator[Clue]:
    told = {failed.end.line.number: failed for failed in reversed(ranks) if failed.end}
    for line in job.lines:
        for cause in CAUSES:
            if cause.shows_in(line.text):
                lost = _NODE_NAME.search(line.text)
                yield Clue(
                    cause=cause,
                    log=job,
                    line=line,
                    rank=told.get(line.number),
                    node=lost["node"] if lost else None,
                )


def _refusal_clues(logs: StartLogs) -> Iterator[Clue]:
    """megatune's message above the batch script's own, where the user's input ended the job before its ranks."""
    if logs.job is not None and logs.code == USER_ERROR:
        said = [line for line in logs.job.lines if line.text.startswith("megatune: ")]
        yield from (Clue(cause=CONFIG, log=logs.job, line=line) for line in said[-2:-1])


def _rank_clues(failed: FailedRank) -> Iterator[Clue]:
    lines = _failure_lines(failed.log)
    for line in lines:
        for cause in CAUSES:
            if cause.shows_in(line.text):
                yield _rank_clue(cause, line, failed)
    yield from _message_clues(failed, lines)
    yield from _traceback_clues(failed, lines)
    if failed.code is not None and failed.code < 0 and not failed.stopped_by_us:
        for cause in CAUSES:
            if -failed.code in cause.signals:
                yield Clue(cause=cause, rank=failed)


def _rank_clue(cause: Cause, line: Line, failed: FailedRank) -> Clue:
    """A line of a rank's log; what Slurm's own process writes there is about the node, not about this rank."""
    by_slurm = _SLURMSTEPD.match(line.text)
    if by_slurm is None:
        return Clue(cause=cause, log=failed.log, line=line, rank=failed)
    # Of what befalls the whole job every node reports, the ones that were not lost first of all.
    node = None if cause.of_job else by_slurm["node"] or failed.node
    return Clue(cause=cause, log=failed.log, line=line, node=node)


def _message_clues(failed: FailedRank, lines: Sequence[Line]) -> Iterator[Clue]:
    """megatune's own last message, when the rank ended with it: nothing failed after it was said."""
    said = [number for number, line in enumerate(lines) if line.text.startswith("megatune: ")]
    ended_by_it = failed.code == USER_ERROR or (
        failed.code in (1, None) and bool(said) and not _has_traceback(lines[said[-1] :])
    )
    if said and ended_by_it and guilt(failed) is not Guilt.LOST_A_PEER:
        yield Clue(cause=CONFIG, log=failed.log, line=lines[said[-1]], rank=failed)


def _traceback_clues(failed: FailedRank, lines: Sequence[Line]) -> Iterator[Clue]:
    """The traceback that a rank ended with: whose code was it, and what was raised?"""
    if not _has_traceback(lines) or guilt(failed) is Guilt.LOST_A_PEER:
        return
    frames = [(number, match) for number, line in enumerate(lines) if (match := _FRAME.match(line.text))]
    if not frames:
        return
    last, frame = frames[-1]
    raised = next((line for line in lines[last + 1 :] if _RAISED.match(line.text)), None)
    if raised is None or _ENDED_FROM_OUTSIDE.search(raised.text):
        return
    if any(cause.shows_in(raised.text) for cause in CAUSES):
        return  # known by its words; where it was raised says less
    cause = USER_CODE if _is_foreign(frame["file"]) else SOFTWARE
    yield Clue(cause=cause, log=failed.log, line=raised, rank=failed)
    yield Clue(cause=cause, log=failed.log, line=lines[last], rank=failed)


def _is_foreign(file: str) -> bool:
    """Whether a file belongs to the user or the model, not to megatune or an installed package."""
    if _REMOTE_CODE in file:
        return True
    return not any(part in file for part in _INSTALLED) and "megatune" not in PurePath(file).parts


def _failure_lines(log: Log) -> Sequence[Line]:
    """The last lines of a rank's log, and the traceback that it ends with."""
    tail = rank_logs.failure_tail(log.text).splitlines()
    count = max(_LAST_LINES, len(tail))
    return log.lines[-count:]


def _has_traceback(lines: Sequence[Line]) -> bool:
    return any("Traceback (most recent call last)" in line.text for line in lines)
