"""The ranks of one start on this machine: their logs, their environment, their output, how they ended."""

import os
import shlex
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from megatune.errors import LaunchError
from megatune.launch import rank_logs
from megatune.launch.devices import count_cpus
from megatune.launch.processes import GOOD_ENDS, RankProcess, Start, start_process
from megatune.launch.ranks import RankInfo, rank_environment, rank_log_environment
from megatune.launch.terminal import EchoedStream, Target
from megatune.launch.verdict import RankExit
from megatune.launch.watch import Watch


@dataclass(frozen=True, kw_only=True)
class RanksHere:
    """What this machine starts: `num_ranks` ranks from `first_rank` on, of a job of `world_size`."""

    command: Sequence[str]
    num_ranks: int
    first_rank: int
    world_size: int
    master_addr: str
    master_port: int
    launcher: str
    log_dir: Path
    extra_env: Mapping[str, str] = field(default_factory=dict)
    echo_rank: int | None = None
    """The rank whose output is shown as well as logged; None, or one of another machine, for none."""
    start: Start = start_process


Targets = Callable[[], tuple[Target, Target]]
"""Gives where the echoed rank's standard output and error are shown."""


def start_ranks(ranks: RanksHere, watch: Watch[RankProcess], targets: Targets) -> None:
    """Start every rank, into the care of `watch`.

    Raises LaunchError when a log or a program cannot be opened; those that run by then are in `watch`.
    """
    for local_rank in range(ranks.num_ranks):
        watch.members.append(_start_rank(ranks, local_rank, watch, targets))


def exit_of(rank: RankProcess) -> RankExit:
    """How a rank that has ended did so. Of one that failed itself, its log says so from now on."""
    code = rank.poll()
    assert code is not None, "the watch has seen it end"
    output = rank_logs.read_log(rank.log, rank.log_start)
    if code not in GOOD_ENDS and not rank.stopped_by_us:
        with suppress(OSError):  # a full disk may be what it failed of
            rank_logs.note_end(rank.log, rank=rank.rank, code=code)
    return RankExit(rank=rank.rank, code=code, log=rank.log, output=output, stopped_by_us=rank.stopped_by_us)


def _start_rank(
    ranks: RanksHere, local_rank: int, watch: Watch[RankProcess], targets: Targets
) -> RankProcess:
    rank = ranks.first_rank + local_rank
    log = rank_logs.log_path(ranks.log_dir, rank)
    title = f"rank {rank} of {ranks.world_size} on {socket.gethostname()}: {shlex.join(ranks.command)}"
    try:
        log_fd, log_start = rank_logs.open_log(log, title)
    except OSError as error:
        raise LaunchError(f"cannot write the log {log}: {error.strerror}") from error
    with ExitStack() as after_start:
        after_start.callback(os.close, log_fd)
        stdout = stderr = log_fd
        if rank == ranks.echo_rank:
            stdout, stderr = _open_echo(targets(), log_fd, watch, after_start)
        terminal_log = rank_log_environment(log) if os.isatty(stdout) else {}
        process = ranks.start(
            ranks.command,
            environment=_environment(ranks, local_rank, terminal_log),
            stdout=stdout,
            stderr=stderr,
        )
    return RankProcess(rank=rank, log=log, log_start=log_start, process=process)


def _environment(ranks: RanksHere, local_rank: int, terminal_log: Mapping[str, str]) -> dict[str, str]:
    info = RankInfo(
        rank=ranks.first_rank + local_rank,
        local_rank=local_rank,
        world_size=ranks.world_size,
        local_world_size=ranks.num_ranks,
        master_addr=ranks.master_addr,
        master_port=ranks.master_port,
        launcher=ranks.launcher,
    )
    threads = max(1, count_cpus() // ranks.num_ranks)
    return rank_environment(info, threads=threads, extra={**terminal_log, **ranks.extra_env})


def _open_echo(
    targets: tuple[Target, Target], log_fd: int, watch: Watch[RankProcess], after_start: ExitStack
) -> tuple[int, int]:
    """The rank's ends of its standard output and error, each a terminal where its target is one."""
    out, err = targets
    shown_out = _open_stream(out, log_fd, watch, after_start)
    if out.is_terminal and err.is_terminal:
        return shown_out.child_fd, shown_out.child_fd  # one screen: keep the order of what is printed
    return shown_out.child_fd, _open_stream(err, log_fd, watch, after_start).child_fd


def _open_stream(
    target: Target, log_fd: int, watch: Watch[RankProcess], after_start: ExitStack
) -> EchoedStream:
    stream = EchoedStream(target, log_fd)
    after_start.callback(stream.close_child_end)
    watch.read(stream)
    return stream
