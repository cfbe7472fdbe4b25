"""What srun and slurmstepd say in a job's log about how tasks ended."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from megatune.launch.digest.logs import Line, signal_or_code

_TASKS = re.compile(r"srun: error: (?P<node>[\w.\-]+): tasks? (?P<tasks>[\d,\-]+): (?P<how>.+)")
_EXITED = re.compile(r"Exited with exit code (\d+)")
_SIGNALS = {
    "killed": 9,
    "out of memory": 9,
    "terminated": 15,
    "segmentation fault": 11,
    "aborted": 6,
    "bus error": 7,
    "illegal instruction": 4,
    "floating point exception": 8,
    "user defined signal 1": 10,
    "user defined signal 2": 12,
    "interrupt": 2,
    "hangup": 1,
}
_SENT_BY_SRUN = frozenset({-9, -15})


@dataclass(frozen=True, kw_only=True)
class TaskEnd:
    """How one task (rank) ended, as srun saw it."""

    rank: int
    node: str
    code: int
    """Negative for a signal."""
    stopped_by_srun: bool
    """It was killed after another task had failed."""
    line: Line


def task_ends(lines: Sequence[Line]) -> list[TaskEnd]:
    """The ends of tasks in a job's log, in the order in which srun learnt of them.

    Lines look like `srun: error: n1: tasks 0,2-3: Exited with exit code 1` and
    `srun: error: n2: task 4: Segmentation fault (core dumped)`.
    """
    found: list[TaskEnd] = []
    for line in lines:
        match = _TASKS.search(line.text)
        code = _code(match["how"]) if match else None
        if match is None or code is None:
            continue
        # --kill-on-bad-exit: the first bad end is the cause, and srun terminates the others.
        by_srun = bool(found) and code in _SENT_BY_SRUN and "memory" not in match["how"].lower()
        found += [
            TaskEnd(rank=rank, node=match["node"], code=code, stopped_by_srun=by_srun, line=line)
            for rank in _expand(match["tasks"])
        ]
    return found


def _code(how: str) -> int | None:
    exited = _EXITED.match(how)
    if exited:
        return signal_or_code(int(exited[1]))
    name = how.partition("(")[0].strip().lower()
    return -_SIGNALS[name] if name in _SIGNALS else None


def _expand(tasks: str) -> list[int]:
    """The numbers of `0,2-4`."""
    found: list[int] = []
    for part in filter(None, tasks.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
