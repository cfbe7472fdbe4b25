"""One child process that cannot outlive this one, and what its end means in words."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megatune.errors import LaunchError

STOPPED_BUT_SAVED = 75
GOOD_ENDS = (0, STOPPED_BUT_SAVED)

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded before any fork: the child may only call it

_SIGNAL_MEANINGS = {
    signal.SIGKILL: "killed (SIGKILL): probably out of host memory",
    signal.SIGTERM: "terminated (SIGTERM) before it could save",
    signal.SIGINT: "interrupted (SIGINT) before it could save",
    signal.SIGSEGV: "crashed (SIGSEGV): a fault in native code",
    signal.SIGILL: "crashed (SIGILL): an op built for another processor",
    signal.SIGBUS: "crashed (SIGBUS): probably no space left in /dev/shm or on a disk that is memory-mapped",
    signal.SIGABRT: "aborted (SIGABRT) in native code",
}


class Process(Protocol):
    """A child that was started; `subprocess.Popen` is one."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code, negative for a signal, or None while it runs."""

    def send_signal(self, sig: int) -> None:
        """Send a signal; harmless once it has ended."""


class Start(Protocol):
    """Starts a command as `start_process` does."""

    def __call__(
        self, command: Sequence[str], *, environment: Mapping[str, str], stdout: int, stderr: int
    ) -> Process:
        """Raises LaunchError when it cannot be started."""


@dataclass
class RankProcess:
    """A running or ended rank. `log_start` is the byte of its log file at which this start begins."""

    rank: int
    log: Path
    log_start: int
    process: Process
    stopped_by_us: bool = False
    """We told it to end because another rank had failed, so its own end is no cause."""

    @property
    def name(self) -> str:
        """`3` for rank 3."""
        return str(self.rank)

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while the rank runs."""
        return self.process.poll()

    def has_failed(self) -> bool:
        """Whether it ended other than well."""
        return self.poll() not in (None, *GOOD_ENDS)

    def stop(self, signum: int) -> None:
        """Send a signal to the rank alone; harmless once it has ended."""
        self.process.send_signal(signum)

    def end(self) -> None:
        """Tell it to end because another rank has failed; one that has ended by itself stays as it is."""
        if self.poll() is None:
            self.stopped_by_us = True
            self.stop(signal.SIGTERM)

    def kill(self) -> None:
        """End the rank and everything it started that is still in its session, at once."""
        kill_group(self.process)


def kill_group(process: Process) -> None:
    """Kill what `start_process` started, and all in its session; harmless when everything has ended."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def module_command(module: str, *arguments: str, python: Sequence[str] = (sys.executable,)) -> list[str]:
    """The command that runs a module as a program. `python`: the interpreter, with what stands before it.

    -P: else the current folder comes first on the path, and what the user calls tokenize.py or queue.py there
    is imported in place of the library's. PYTHONPATH still counts.
    """
    return [*python, "-P", "-m", module, *arguments]


def start_process(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    stdout: int,
    stderr: int,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, to be killed by the kernel when this process dies.

    Its own session keeps the terminal's Ctrl-C from it: signals come from the launcher, once.
    Call it from the main thread only: the kernel counts the end of the starting thread as the
    parent's death. Raises LaunchError when the program cannot be started.
    """
    try:
        return subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=die_with_parent(os.getpid()),
        )
    except OSError as error:
        raise LaunchError(f"cannot start {command[0]}: {error.strerror or error}") from error


def describe_exit(code: int) -> str:
    """An exit code in words.

    >>> describe_exit(-9)
    'killed (SIGKILL): probably out of host memory'
    >>> describe_exit(3)
    'ended with exit code 3'
    """
    if code >= 0:
        return f"ended with exit code {code}"
    known = _SIGNAL_MEANINGS.get(signal.Signals(-code)) if -code in set(signal.Signals) else None
    return known or f"killed by {signal_name(-code)}"


def signal_name(signum: int) -> str:
    """`SIGTERM` for 15."""
    return signal.Signals(signum).name if signum in set(signal.Signals) else f"signal {signum}"


def name_this_process(name: str) -> None:
    """Show this process as `name` (15 bytes at most) in ps and top, where forked ranks look like their launcher.

    Without spaces: Slurm (jobacct_gather/linux, 22.05) skips a process with one in its name, and then neither
    counts its memory nor holds it to the job's limit.
    """
    assert " " not in name, name
    _LIBC.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def die_with_parent(parent: int) -> Callable[[], None]:
    """What a process does after its fork from `parent` to be killed by the kernel when that one ends."""

    def between_fork_and_exec() -> None:
        if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0 or os.getppid() != parent:
            os._exit(127)  # the parent died before the request was made

    return between_fork_and_exec
