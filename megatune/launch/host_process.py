"""The ranks of one other host, seen through the ssh client that leads there."""

import os
import shlex
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatune.launch.hostfile import Host
from megatune.launch.node_messages import (
    Hello,
    MarkedLines,
    NodeTask,
    encode,
    encode_task,
    exit_in,
    output_of,
)
from megatune.launch.processes import GOOD_ENDS, describe_exit, kill_group, module_command, start_process
from megatune.launch.verdict import RankExit
from megatune.launch.watch import Watch

SSH_OPTIONS = (
    "-T",  # a terminal would turn the end of our input into something else than an end
    "-oBatchMode=yes",  # nobody is there to type a password for eight hosts
    "-oConnectTimeout=20",
    "-oServerAliveInterval=30",  # a host that lost its power says nothing
    "-oControlMaster=no",  # or killing this client would end the user's other connections
)
_SSH_FAILED = 255
_NO_SUCH_PROGRAM = (126, 127)
_KEPT_LINES = 20
_READ_BYTES = 64 * 1024

OnExit = Callable[[RankExit], None]
OnOutput = Callable[[int, bytes], None]


def ssh_command(host: Host, remote: str) -> list[str]:
    """The arguments that run `remote`, one text, in the login shell of `host`."""
    return ["ssh", *SSH_OPTIONS, "--", host.name, remote]


def remote_command(python: str, folder: Path, environment: dict[str, str]) -> str:
    """What the shell of a host is given to run: a node, in `folder`, by the interpreter `python`."""
    settings = [f"{name}={value}" for name, value in environment.items()]
    node = shlex.join(module_command("megatune.launch.node", python=["env", *settings, python]))
    return f"cd {shlex.quote(str(folder))} && exec {node}"


class HostProcess:
    """One host and its ranks, from `first_rank` on."""

    def __init__(self, host: Host, first_rank: int, on_exit: OnExit, on_output: OnOutput) -> None:
        self.host, self.first_rank = host, first_rank
        self.hello: Hello | None = None
        self.exits: list[RankExit] = []
        self.refusal: str | None = None
        """Why the host did not start its ranks."""
        self.is_silent = False
        """It has said all that it will say."""
        self._on_exit, self._on_output = on_exit, on_output
        self._said: deque[str] = deque(maxlen=_KEPT_LINES)
        self._has_task = False

    @property
    def name(self) -> str:
        """`2 to 3 on node02`."""
        last = self.first_rank + self.host.slots - 1
        ranks = f"{self.first_rank} to {last}" if last > self.first_rank else str(last)
        return f"{ranks} on {self.host.name}"

    def start(self, command: Sequence[str], environment: dict[str, str], watch: Watch["HostProcess"]) -> None:
        """Start the ssh client. Raises LaunchError when there is none."""
        pipes = [os.pipe() for _ in range(3)]
        (stdin, self._input), (output, stdout), (errors, stderr) = pipes
        try:
            self._process = start_process(
                command, environment=environment, stdin=stdin, stdout=stdout, stderr=stderr
            )
        except BaseException:
            for fd in (self._input, output, errors):
                os.close(fd)
            raise
        finally:
            for fd in (stdin, stdout, stderr):
                os.close(fd)
        watch.members.append(self)
        watch.read(_Messages(output, self))
        watch.read(_Words(errors, self))

    def give(self, task: NodeTask) -> None:
        """Have the host start its ranks."""
        self._has_task = True
        self._write(encode_task(task))

    def poll(self) -> int | None:
        """The exit code of the ssh client, or None while it runs."""
        return self._process.poll()

    def has_failed(self) -> bool:
        """Whether one of its ranks failed, or it has ended without telling how they did."""
        if not self._has_task:
            return False
        return any(ended.code not in GOOD_ENDS for ended in self.exits) or (self.is_silent and self.is_lost())

    def is_lost(self) -> bool:
        """Whether there are ranks of which it did not tell how they ended."""
        return len(self.exits) < self.host.slots

    def stop(self, signum: int) -> None:
        """Have its ranks save and stop."""
        if self._has_task:
            self._write(encode("stop", signal=signum))

    def end(self) -> None:
        """Have its ranks end because others failed."""
        if self._has_task:
            self._write(encode("end"))

    def kill(self) -> None:
        """Cut the connection: the host kills its ranks when it notices, which is at once."""
        if self._input >= 0:
            os.close(self._input)
            self._input = -1
        kill_group(self._process)

    def take(self, found: dict[str, Any] | str) -> None:
        """Act on one line that came from the host."""
        if isinstance(found, str):
            self._said.append(found)
        elif found["kind"] == "hello":
            self.hello = Hello(**{key: value for key, value in found.items() if key != "kind"})
        elif found["kind"] == "output":
            self._on_output(*output_of(found))
        elif found["kind"] == "ended":
            self.exits.append(exit_in(found))
            self._on_exit(self.exits[-1])
        elif found["kind"] == "refused":
            self.refusal = str(found["text"])

    def end_in_words(self, python: str) -> str:
        """How the ssh client ended and what was said, with what to do about it."""
        code = self.poll()
        said = "\n    ".join(["", *self._said]) if self._said else " It said nothing."
        if code is None:
            return f"no answer.{said if self._said else ''}"
        return f"ssh {describe_exit(code)}. {self._advice(code, python)}{said}"

    def _advice(self, code: int, python: str) -> str:
        if code == _SSH_FAILED:
            return (
                f"`ssh {self.host.name} true` must work without a question; names and keys are those of your "
                "ssh config."
            )
        if code in _NO_SUCH_PROGRAM:
            return f"There must be {python}, with megatune, on every host."
        if any("No module named" in line and "megatune" in line for line in self._said):
            return f"{python} there has no megatune: install it, or share the environment."
        return ""

    def _write(self, data: bytes) -> None:
        # An ssh client that has just ended reads no more; the watch sees its end next.
        with suppress(BrokenPipeError):
            while data and self._input >= 0:
                data = data[os.write(self._input, data) :]


class _Messages:
    """The standard output of the ssh client."""

    def __init__(self, fd: int, host: HostProcess) -> None:
        self.fd, self._host, self._lines = fd, host, MarkedLines()

    def pump(self) -> bool:
        """Act on what has come."""
        data = os.read(self.fd, _READ_BYTES)
        for found in self._lines.feed(data):
            self._host.take(found)
        if not data:
            self._host.is_silent = True
        return bool(data)

    def follow_window_size(self) -> None:
        """The ranks have no terminal."""

    def close(self) -> None:
        """Give up the pipe."""
        os.close(self.fd)


class _Words(_Messages):
    """Its standard error: words of ssh, of the login shell, or of an interpreter that could not start."""

    def pump(self) -> bool:
        """Keep what was said."""
        data = os.read(self.fd, _READ_BYTES)
        for found in self._lines.feed(data if data else b"\n"):
            self._host.take(found)
        return bool(data)
