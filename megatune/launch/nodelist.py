"""Slurm's short forms, written out: `n[01-03,7]` for hosts, `2(x3),1` for numbers of tasks."""

import itertools
import re
from collections.abc import Iterator

from megatune.errors import LaunchError

_MOST_HOSTS = 65_536  # Slurm's own limit for one list
_OUTER_COMMA = re.compile(r",(?![^\[]*\])")
_PIECES = re.compile(r"\[([^\[\]]*)\]|([^\[\],]+)")
_RANGE = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?", re.ASCII)
_TASKS = re.compile(r"(\d{1,9})(?:\(x(\d{1,9})\))?", re.ASCII)


def expand_nodelist(text: str) -> list[str]:
    """The hosts of a list as SLURM_JOB_NODELIST holds it, in its order. Raises LaunchError for other text.

    >>> expand_nodelist("login,n[08-10,2]-ib,r[1-2]c[0-1]")
    ['login', 'n08-ib', 'n09-ib', 'n10-ib', 'n2-ib', 'r1c0', 'r1c1', 'r2c0', 'r2c1']
    """
    hosts = [
        "".join(parts) for group in _OUTER_COMMA.split(text) for parts in _combinations(group.strip(), text)
    ]
    if len(hosts) > _MOST_HOSTS:
        raise LaunchError(f"the list of hosts {text!r} names more than {_MOST_HOSTS} of them.")
    return hosts


def expand_task_counts(text: str) -> list[int]:
    """Tasks of each node, from the form of SLURM_STEP_TASKS_PER_NODE. Raises LaunchError for other text.

    >>> expand_task_counts("2(x3),1")
    [2, 2, 2, 1]
    """
    counts: list[int] = []
    for part in text.split(","):
        match = _TASKS.fullmatch(part.strip())
        if match is None or int(match[2] or 1) > _MOST_HOSTS:
            raise LaunchError(f"{text!r} says no numbers of tasks; Slurm writes them as `2(x3),1`.")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _combinations(group: str, text: str) -> Iterator[tuple[str, ...]]:
    pieces = list(_PIECES.finditer(group))
    if not pieces or "".join(piece[0] for piece in pieces) != group:
        raise LaunchError(f"{text!r} is no list of hosts; Slurm writes them as `n[01-03,7],login`.")
    return itertools.islice(itertools.product(*(_choices(piece, text) for piece in pieces)), _MOST_HOSTS + 1)


def _choices(piece: re.Match[str], text: str) -> list[str]:
    inside, plain = piece.groups()
    if plain is not None:
        return [plain]
    numbers: list[str] = []
    for part in inside.split(","):
        match = _RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if match is None or not 0 <= last - first < _MOST_HOSTS:
            raise LaunchError(
                f"{text!r} is no list of hosts: {part!r} in its brackets is no number or range."
            )
        numbers += [str(number).zfill(len(match[1])) for number in range(first, last + 1)]
    return numbers
