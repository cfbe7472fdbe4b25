"""What sacct says about jobs: how each of their starts ended, and how their steps did."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from megatune.errors import SubmitError
from megatune.launch.slurm.command import Call
from megatune.launch.slurm.states import JobState, job_state

_FIELDS = ("JobID", "State", "ExitCode", "Start", "End", "NNodes", "TimelimitRaw", "NodeList")
_SEPARATOR = "|"
_RECORD_ID = re.compile(r"(?P<job>\d+(?:_\d+|\+\d+)?)(?:\.(?P<step>\w+))?")
_DISABLED = re.compile(r"accounting storage is disabled", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One start of a job, or one of its steps. None is unknown."""

    record_id: str
    """`123`, `123_4` or, of a step, `123.0`."""
    state: JobState
    exit_code: str | None
    """Slurm's `code:signal`."""
    started_at: datetime | None
    ended_at: datetime | None
    num_nodes: int | None
    time_limit_s: int | None
    nodes: str | None


@dataclass(frozen=True, kw_only=True)
class Account:
    """All that sacct knows about one job."""

    starts: tuple[Record, ...]
    """One for each time it was started, in order; more than one when it was queued again."""
    steps: tuple[Record, ...]
    """The numbered steps of all starts, in order."""


def ask_accounting(job_ids: Sequence[str], cluster: str | None, call: Call) -> Mapping[str, Account] | None:
    """What accounting holds for `job_ids`; None on a cluster without accounting.

    Raises SubmitError when sacct fails otherwise or gives an answer that is none.
    """
    if not job_ids:
        return {}
    # Duplicates: the earlier starts of a job that was queued again.
    command = ["sacct", "--parsable2", "--noheader", "--duplicates", f"--jobs={','.join(job_ids)}"]
    command += [f"--clusters={cluster}"] if cluster else []
    answer = call([*command, f"--format={','.join(_FIELDS)}"])
    if _DISABLED.search(answer.err):
        return None
    if answer.code != 0:
        raise SubmitError(f"sacct failed (exit {answer.code}): {answer.err.strip() or answer.out.strip()}")
    return parse_accounts(answer.out)


def parse_accounts(text: str) -> dict[str, Account]:
    """The jobs in an answer of sacct. Raises SubmitError, quoting the line, when it is none."""
    starts: dict[str, list[Record]] = {}
    steps: dict[str, list[Record]] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        fields = line.split(_SEPARATOR)
        match = _RECORD_ID.fullmatch(fields[0])
        if match is None and re.fullmatch(r"\d+_\[.*\]", fields[0]):
            continue  # the tasks of an array that have not been started
        if match is None or len(fields) != len(_FIELDS) or not fields[1]:
            raise SubmitError(f"sacct gave an answer that megatune cannot read: {line!r}")
        step = match["step"]
        if step is None:
            starts.setdefault(match["job"], []).append(_record(fields))
        elif step.isdecimal():  # not `batch` and `extern`, which are no steps of the script
            steps.setdefault(match["job"], []).append(_record(fields))
    return {
        job_id: Account(starts=tuple(found), steps=tuple(steps.get(job_id, ())))
        for job_id, found in starts.items()
    }


def _record(fields: Sequence[str]) -> Record:
    record_id, state, exit_code, start, end, num_nodes, limit_min, nodes = fields
    return Record(
        record_id=record_id,
        state=job_state(state),
        exit_code=exit_code or None,
        started_at=_moment(start),
        ended_at=_moment(end),
        num_nodes=int(num_nodes) if num_nodes.isdecimal() else None,
        time_limit_s=int(limit_min) * 60 if limit_min.isdecimal() else None,
        nodes=nodes if nodes not in ("", "None assigned") else None,
    )


def _moment(text: str) -> datetime | None:
    """A time as Slurm prints it, in this machine's time zone; None for `Unknown` and `None`."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return None
