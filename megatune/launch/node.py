"""`python -m megatune.launch.node`: starts the ranks of one host for a launcher at the other end of ssh.

It reads a task from its standard input and runs it as `launch/local.py` would. When that input
ends, the launcher or the connection is gone, and the ranks are killed.
"""

import os
import socket
import sys
from pathlib import Path

import megatune
from megatune.errors import LaunchError, MegatuneError
from megatune.launch.local_ranks import RanksHere, exit_of, start_ranks
from megatune.launch.node_messages import (
    Hello,
    NodeTask,
    decode,
    decode_task,
    encode_exit,
    encode_marked,
    encode_output,
)
from megatune.launch.ports import reserve_port
from megatune.launch.processes import RankProcess
from megatune.launch.ranks import child_environment
from megatune.launch.ssh_environment import reached_address
from megatune.launch.terminal import Screen
from megatune.launch.verdict import RankExit
from megatune.launch.watch import Watch

_READ_BYTES = 64 * 1024


def main() -> int:
    """Serve the launcher. Returns 0 when it was told of all that happened, 1 when it is gone."""
    # Nothing but messages may go to the launcher, whatever prints in this process.
    launcher = Screen(os.dup(1))
    os.dup2(2, 1)
    with reserve_port() as port:
        hello = Hello(
            version=megatune.__version__,
            python=sys.version.split()[0],
            host=socket.gethostname(),
            port=port,
            address=reached_address(child_environment({})),
        )
        launcher.write(encode_marked("hello", **vars(hello)))
        line, rest = _read_line(0)
        if not line:
            return 1  # the launcher found that it cannot use us
        try:
            _run(decode_task(line), launcher, rest)
        except MegatuneError as error:
            launcher.write(encode_marked("refused", text=str(error)))
    return 0


def _run(task: NodeTask, launcher: Screen, begun: bytes) -> None:
    """Start the ranks and tell the launcher of their ends. `begun`: what it said behind the task."""
    ranks = RanksHere(
        command=task.command,
        num_ranks=task.num_ranks,
        first_rank=task.first_rank,
        world_size=task.world_size,
        master_addr=task.master_addr,
        master_port=task.master_port,
        launcher="ssh",
        log_dir=Path(task.log_dir),
        extra_env=task.environment,
        echo_rank=task.echo_rank,
    )
    if not ranks.log_dir.is_dir():
        raise LaunchError(
            f"there is no {ranks.log_dir} here: train.output_dir must be on a file system that all hosts share"
        )
    watch: Watch[RankProcess] = Watch(grace_s=task.grace_s, on_end=lambda rank: tell(exit_of(rank)))

    def tell(ended: RankExit) -> None:
        try:
            launcher.write(encode_exit(ended))
        except OSError:
            watch.give_up("the launcher is gone")

    control = _Control(watch, begun)
    with watch.signals_noted():
        try:
            start_ranks(ranks, watch, lambda: (_Output(launcher, 1), _Output(launcher, 2)))
            watch.read(control)
            watch.run()
        finally:
            watch.drop(control)
            watch.close()


class _Control:
    """What the launcher says while the ranks run."""

    fd = 0

    def __init__(self, watch: Watch[RankProcess], begun: bytes) -> None:
        self._watch, self._pending = watch, begun

    def pump(self) -> bool:
        """Do as the launcher says."""
        data = os.read(self.fd, _READ_BYTES)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            message = decode(line)
            if message["kind"] == "stop":
                self._watch.note_signal(message["signal"])
            elif message["kind"] == "end":
                self._watch.end_members()
        if not data:
            self._watch.give_up("the launcher is gone")
        return bool(data)

    def follow_window_size(self) -> None:
        """The rank has no terminal."""

    def close(self) -> None:
        """The input stays open: it is not ours to close."""


class _Output:
    """One output of the echoed rank, shown by the launcher. It is no terminal: the rank prints plain lines."""

    is_terminal = False

    def __init__(self, launcher: Screen, stream: int) -> None:
        self._launcher, self._stream = launcher, stream

    def write(self, data: bytes) -> None:
        """Send `data` on. Raises OSError when the connection is gone."""
        if data:
            self._launcher.write(encode_output(self._stream, data))

    def window_size(self) -> None:
        """There is no terminal."""


def _read_line(fd: int) -> tuple[bytes, bytes]:
    """The first line and what came with it; an empty line when the input ends before."""
    found = b""
    while b"\n" not in found:
        data = os.read(fd, _READ_BYTES)
        if not data:
            return b"", b""
        found += data
    line, _, rest = found.partition(b"\n")
    return line, rest


if __name__ == "__main__":
    sys.exit(main())
