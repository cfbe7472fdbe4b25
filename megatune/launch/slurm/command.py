"""Slurm's programs, called one at a time. Tests put programs of their own in their place."""

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatune.errors import SubmitError

_TIMEOUT_S = 60.0  # slurmctld's own default is 10 s, and a busy one is asked again by the program


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an ended program said."""

    code: int
    out: str
    err: str


Call = Callable[[Sequence[str]], Answer]
"""Runs a program to its end. Takes its arguments, the program's name first."""


def call(command: Sequence[str]) -> Answer:
    """Run one of Slurm's programs. Raises SubmitError when it is not there or does not answer in a minute."""
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise SubmitError(
            f"there is no {command[0]} on this machine. Call megatune on a login node of the cluster, or load "
            "the module that brings Slurm's programs."
        ) from error
    except OSError as error:
        raise SubmitError(f"{command[0]} cannot be started: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise SubmitError(
            f"{command[0]} gave no answer in {_TIMEOUT_S:g} s: the Slurm controller may be down or "
            "overloaded (`scontrol ping` tells). Try again later."
        ) from error
    return Answer(
        code=done.returncode,
        out=done.stdout.decode(errors="replace"),
        err=done.stderr.decode(errors="replace"),
    )
