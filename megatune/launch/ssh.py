"""Runs a job on several hosts: one ssh connection each, and a node at its end that starts the ranks there.

Nothing is ended by name. When this process or a connection is gone, the node at the other end
sees the end of its input and kills its own ranks.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import megatune
from megatune.errors import LaunchError
from megatune.launch.culprit import is_cause
from megatune.launch.host_process import HostProcess, remote_command, ssh_command
from megatune.launch.hostfile import Host
from megatune.launch.local import GRACE_S, make_log_dir, with_another_port
from megatune.launch.node_messages import Hello, NodeTask
from megatune.launch.processes import signal_name
from megatune.launch.ranks import child_environment
from megatune.launch.ssh_environment import before_python, is_reachable_from
from megatune.launch.terminal import Screen
from megatune.launch.verdict import RankExit, RanksResult, judge
from megatune.launch.watch import Watch

ANSWER_S = 120.0
"""What a host has to let us in and to start an interpreter, from a slow shared disk perhaps."""
_EXTRA_GRACE_S = 10.0  # a host ends its ranks by itself; only one that cannot is cut off
_ECHO_RANK = 0


@dataclass(frozen=True, kw_only=True)
class SshJob:
    """What is to run where."""

    command: Sequence[str]
    """Run by every rank, with the variables of `launch/ranks.py`."""
    hosts: Sequence[Host]
    python: str
    """The interpreter, at the same path on every host."""
    folder: Path
    """Where the ranks run, on every host."""
    log_dir: Path
    """On a file system that all hosts share."""
    environment: Mapping[str, str]
    """Variables that the ranks get on top of those of their host."""

    @property
    def num_ranks(self) -> int:
        """The ranks of all hosts together."""
        return sum(host.slots for host in self.hosts)


def run_ranks_over_ssh(job: SshJob) -> RanksResult:
    """Run `job` until all ranks on all hosts have ended. What rank 0 prints appears here.

    Stopping, failing and exit codes are those of `run_ranks`. Call it from the main thread. Raises
    LaunchError, naming every host, when hosts do not answer or cannot run the job.
    """
    make_log_dir(job.log_dir)
    return with_another_port(lambda: _Hosts(job).run())


class _Hosts:
    """The hosts of one start, from the first connection to the verdict."""

    def __init__(self, job: SshJob) -> None:
        self._job = job
        self._exits: list[RankExit] = []  # in the order in which we were told of them
        self._screens = {1: Screen(1), 2: Screen(2)}  # those that somebody still reads
        self._watch: Watch[HostProcess] = Watch(grace_s=GRACE_S + _EXTRA_GRACE_S)
        self._hosts: list[HostProcess] = []
        first_rank = 0
        for host in job.hosts:
            self._hosts.append(HostProcess(host, first_rank, self._exits.append, self._show))
            first_rank += host.slots

    def run(self) -> RanksResult:
        """Connect, start the ranks, watch."""
        with self._watch.signals_noted():
            try:
                hellos = self._connect()
                address, port = master_address(hellos), hellos[0].port
                for host in self._hosts:
                    host.give(self._task(host, address, port))
                self._watch.run()
            finally:
                self._watch.close()
        return self._result(port)

    def _connect(self) -> list[Hello]:
        """Reach all hosts at once. Raises LaunchError with what is wrong with each of them."""
        job = self._job
        remote = remote_command(job.python, job.folder, before_python(job.environment))
        for host in self._hosts:
            host.start(ssh_command(host.host, remote), child_environment({}), self._watch)
        last = time.monotonic() + ANSWER_S
        self._watch.run(
            until=lambda: (
                all(host.hello or host.is_silent for host in self._hosts)
                or self._watch.stop_signal is not None
                or time.monotonic() > last
            )
        )
        if self._watch.stop_signal is not None:
            raise LaunchError(
                f"stopped by {signal_name(self._watch.stop_signal)} before the ranks were started"
            )
        if not all(host.hello for host in self._hosts):
            self._watch.drain()
        problems = [problem for host in self._hosts if (problem := self._problem(host))]
        if problems:
            listed = "".join(f"\n  {problem}" for problem in problems)
            raise LaunchError(
                f"{len(problems)} of {len(self._hosts)} hosts cannot take part; no rank was started.{listed}"
            )
        return [host.hello for host in self._hosts if host.hello is not None]

    def _problem(self, host: HostProcess) -> str | None:
        name = host.host.name
        if host.hello is None:
            return f"{name}: {host.end_in_words(self._job.python)}"
        if host.hello.version != megatune.__version__:
            return (
                f"{name}: megatune {host.hello.version} there, {megatune.__version__} here. Install the same."
            )
        return None

    def _task(self, host: HostProcess, address: str, port: int) -> NodeTask:
        return NodeTask(
            command=list(self._job.command),
            num_ranks=host.host.slots,
            first_rank=host.first_rank,
            world_size=self._job.num_ranks,
            master_addr=address,
            master_port=port,
            log_dir=str(self._job.log_dir),
            environment=dict(self._job.environment),
            echo_rank=_ECHO_RANK,
            grace_s=GRACE_S,
        )

    def _show(self, stream: int, data: bytes) -> None:
        try:
            if stream in self._screens:
                self._screens[stream].write(data)
        except OSError:  # nobody reads it any more; the log has it all
            del self._screens[stream]

    def _result(self, port: int) -> RanksResult:
        job, watch = self._job, self._watch
        refusals = [f"{host.host.name}: {host.refusal}" for host in self._hosts if host.refusal]
        lost = [host for host in self._hosts if host.is_lost()]
        if watch.gave_up is not None:
            return _failed(f"{watch.gave_up}. Logs: {job.log_dir}")
        if refusals:
            return _failed("\n".join(refusals))
        if lost and not any(map(is_cause, self._exits)):
            return _failed("\n".join(self._loss(host) for host in lost))
        return judge(
            self._exits,
            num_ranks=job.num_ranks,
            port=port,
            echo_rank=_ECHO_RANK,
            stop_signal=watch.stop_signal,
        )

    def _loss(self, host: HostProcess) -> str:
        return (
            f"lost {host.host.name}, with the ranks {host.name}: {host.end_in_words(self._job.python)} "
            f"Logs: {self._job.log_dir}"
        )


def master_address(hellos: Sequence[Hello]) -> str:
    """Where the ranks of all hosts find the first one: the address that ssh reached, or else its name."""
    first, *others = hellos
    if first.address and is_reachable_from(first.address, [hello.address for hello in others]):
        return first.address
    return first.host


def _failed(text: str) -> RanksResult:
    return RanksResult(exit_code=1, failed_rank=None, failure_text=text)
