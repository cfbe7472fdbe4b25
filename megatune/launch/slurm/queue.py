"""What squeue says about jobs: state, reason, nodes, and the time that is left."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from megatune.errors import SubmitError
from megatune.launch.slurm.command import Call
from megatune.launch.slurm.quantities import parse_left_s
from megatune.launch.slurm.states import JobState, job_state

# The unit separator: reasons hold commas, colons, brackets and spaces, and an administrator's own words.
_SEPARATOR = "\x1f"
_FIELDS = ("%i", "%T", "%r", "%N", "%D", "%L", "%l")
_JOB_ID = re.compile(r"\d+(_\d+|\+\d+)?")
_AGED_OUT = re.compile(r"Invalid job id", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """One job as squeue shows it. None is unknown, or not yet decided."""

    job_id: str
    state: JobState
    reason: str | None
    nodes: str | None
    """Slurm's own short form: `n[1-4]`."""
    num_nodes: int | None
    time_left_s: int | None
    time_limit_s: int | None


def ask_queue(job_ids: Sequence[str], cluster: str | None, call: Call) -> dict[str, QueuedJob]:
    """The jobs among `job_ids` that squeue still knows, ended ones of the last minutes included.

    Raises SubmitError when squeue fails or gives an answer that is none.
    """
    if not job_ids:
        return {}
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(job_ids)}"]
    command += [f"--clusters={cluster}"] if cluster else []
    answer = call([*command, f"--format={_SEPARATOR.join(_FIELDS)}"])
    if answer.code != 0:
        if _AGED_OUT.search(answer.err):  # all of them ended longer ago than MinJobAge
            return {}
        raise SubmitError(f"squeue failed (exit {answer.code}): {answer.err.strip() or answer.out.strip()}")
    return {job.job_id: job for job in parse_queue(answer.out)}


def parse_queue(text: str) -> list[QueuedJob]:
    """The jobs in an answer of squeue. Raises SubmitError, quoting the line, when it is none."""
    return [
        _job(line)
        for line in text.split("\n")
        # With --clusters squeue names each cluster, whatever --noheader says.
        if line and not line.startswith("CLUSTER:")
    ]


def _job(line: str) -> QueuedJob:
    fields = [field.strip() for field in line.split(_SEPARATOR)]
    if len(fields) != len(_FIELDS) or not _JOB_ID.fullmatch(fields[0]) or not fields[1]:
        raise SubmitError(f"squeue gave an answer that megatune cannot read: {line!r}")
    job_id, state, reason, nodes, num_nodes, left, limit = fields
    return QueuedJob(
        job_id=job_id,
        state=job_state(state),
        reason=reason if reason not in ("", "None") else None,
        nodes=nodes or None,
        num_nodes=int(num_nodes) if num_nodes.isdecimal() else None,
        time_left_s=parse_left_s(left),
        time_limit_s=parse_left_s(limit),
    )
