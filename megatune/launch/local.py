"""Starts the ranks of a job on this machine, watches them, and leaves none behind.

One loop, no threads: copy what the echoed rank prints, notice ranks that end, pass signals on.
Whatever happens to this process, SIGKILL included, the kernel ends its ranks.
"""

import os
import selectors
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from megatune.errors import LaunchError
from megatune.launch import rank_logs
from megatune.launch.devices import count_cpus
from megatune.launch.ports import LOOPBACK, reserve_port
from megatune.launch.processes import RankProcess, signal_name, start_process
from megatune.launch.ranks import RankInfo, rank_environment, rank_log_environment
from megatune.launch.terminal import EchoedStream
from megatune.launch.verdict import GOOD_ENDS, RankExit, RanksResult, judge

PORT_ATTEMPTS = 3
_TICK_S = 0.1
# One Ctrl-C may arrive twice: from the terminal and passed on by a wrapper such as `uv run`.
_REPEAT_S = 1.0
_DRAIN_S = 0.5  # for output still in the pipe once all ranks have ended


@dataclass(frozen=True, kw_only=True)
class Job:
    """What `run_ranks` was asked; see there."""

    command: Sequence[str]
    num_ranks: int
    log_dir: Path
    timeout_s: float | None
    grace_s: float
    extra_env: Mapping[str, str]
    echo_rank: int | None


def run_ranks(
    command: Sequence[str],
    *,
    num_ranks: int,
    log_dir: Path,
    timeout_s: float | None = None,
    grace_s: float = 5.0,
    extra_env: Mapping[str, str] | None = None,
    echo_rank: int | None = 0,
    first_port: int | None = None,
) -> RanksResult:
    """Run `command` as `num_ranks` ranks of one job on this machine until all have ended.

    Every rank gets the variables of `launch/ranks.py` and appends to `log_dir`/rank-NNNNN.log;
    what `echo_rank` prints also appears here. When a rank fails, the others are told to end and
    are killed after `grace_s` seconds. The first SIGINT or SIGTERM (SIGHUP counts as SIGTERM) is
    passed on to the ranks, which save and stop; the second kills them. After `timeout_s` seconds
    the job is ended as failed. `first_port`: try MASTER_PORT upwards from here.

    Call it from the main thread. Raises LaunchError when the ranks cannot be started.
    """
    if num_ranks < 1:
        raise LaunchError(f"asked for {num_ranks} ranks; a job needs 1 or more")
    job = Job(
        command=command,
        num_ranks=num_ranks,
        log_dir=log_dir.absolute(),
        timeout_s=timeout_s,
        grace_s=grace_s,
        extra_env=extra_env or {},
        echo_rank=echo_rank,
    )
    tried: set[int] = set()
    while True:
        with reserve_port(first_port, avoid=tried) as port:
            tried.add(port)
            result = _run_on_port(job, port)
        if not result.port_taken or len(tried) == PORT_ATTEMPTS:
            return result
        print(f"megatune: another program took port {port} first; starting the ranks again", file=sys.stderr)


def _run_on_port(job: Job, port: int) -> RanksResult:
    world = LocalWorld(job, port)
    with _signals_noted(world):
        try:
            world.start()
            world.watch()
        finally:
            world.end()
    return world.result()


class LocalWorld:
    """The ranks of one start, from their first process to their verdict."""

    def __init__(self, job: Job, port: int) -> None:
        self._job = job
        self._port = port
        self._ranks: list[RankProcess] = []
        self._ended: list[RankProcess] = []  # in the order in which they were seen to end
        self._streams = selectors.DefaultSelector()
        self._signals: list[int] = []  # that arrived and are not acted on yet
        self._stop_signal: int | None = None
        self._stopped_at = 0.0
        self._gave_up: str | None = None
        self._kill_at: float | None = None
        self._give_up_at = None if job.timeout_s is None else time.monotonic() + job.timeout_s

    def start(self) -> None:
        """Start every rank. Raises LaunchError when a log or a program cannot be opened."""
        try:
            self._job.log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LaunchError(f"cannot make the log folder {self._job.log_dir}: {error.strerror}") from error
        for rank in range(self._job.num_ranks):
            self._start_rank(rank)

    def watch(self) -> None:
        """Return when all ranks have ended."""
        while len(self._ended) < len(self._ranks):
            self._pump(_TICK_S)
            self._note_ended()
            self._pass_signals_on()
            self._end_after_failure()

    def end(self) -> None:
        """Kill whatever is left of the ranks and what they started, and close their output."""
        for rank in self._running():
            rank.kill_group()
            rank.process.wait()
        last = time.monotonic() + _DRAIN_S
        while self._pump(0.05) and time.monotonic() < last:
            pass
        for stream in self._open_streams():
            self._close_stream(stream)
        self._streams.close()

    def result(self) -> RanksResult:
        """The verdict, once all ranks have ended."""
        if self._gave_up is not None:
            return RanksResult(exit_code=1, failed_rank=None, failure_text=self._gave_up)
        return judge(
            [_exit_of(rank) for rank in self._ended],
            num_ranks=self._job.num_ranks,
            port=self._port,
            echo_rank=self._job.echo_rank,
            stop_signal=self._stop_signal,
        )

    def note_signal(self, signum: int, _frame: FrameType | None) -> None:
        """Signal handler: remember it for the loop."""
        self._signals.append(signal.SIGTERM if signum == signal.SIGHUP else signum)

    def _start_rank(self, rank: int) -> None:
        job = self._job
        log = rank_logs.log_path(job.log_dir, rank)
        title = f"rank {rank} of {job.num_ranks}: {shlex.join(job.command)}"
        try:
            log_fd, log_start = rank_logs.open_log(log, title)
        except OSError as error:
            raise LaunchError(f"cannot write the log {log}: {error.strerror}") from error
        with ExitStack() as after_start:
            after_start.callback(os.close, log_fd)
            stdout = stderr = log_fd
            if rank == job.echo_rank:
                stdout, stderr = self._open_echo(log_fd, after_start)
            terminal_log = rank_log_environment(log) if os.isatty(stdout) else {}
            process = start_process(
                job.command, environment=self._environment(rank, terminal_log), stdout=stdout, stderr=stderr
            )
        self._ranks.append(RankProcess(rank=rank, log=log, log_start=log_start, process=process))

    def _environment(self, rank: int, terminal_log: Mapping[str, str]) -> dict[str, str]:
        num_ranks = self._job.num_ranks
        info = RankInfo(
            rank=rank,
            local_rank=rank,
            world_size=num_ranks,
            local_world_size=num_ranks,
            master_addr=LOOPBACK,
            master_port=self._port,
            launcher="local",
        )
        threads = max(1, count_cpus() // num_ranks)
        return rank_environment(info, threads=threads, extra={**terminal_log, **self._job.extra_env})

    def _open_echo(self, log_fd: int, after_start: ExitStack) -> tuple[int, int]:
        """The rank's ends of its standard output and error, each a terminal where ours is one."""
        sys.stdout.flush()
        sys.stderr.flush()
        out = self._open_stream(1, log_fd, after_start)
        if out.is_terminal and os.isatty(2):
            return out.child_fd, out.child_fd  # one screen: keep the order of what is printed
        return out.child_fd, self._open_stream(2, log_fd, after_start).child_fd

    def _open_stream(self, target_fd: int, log_fd: int, after_start: ExitStack) -> EchoedStream:
        stream = EchoedStream(target_fd, log_fd)
        after_start.callback(stream.close_child_end)
        self._streams.register(stream.fd, selectors.EVENT_READ, stream)
        return stream

    def _pump(self, wait_s: float) -> bool:
        """Copy output that is there, waiting up to `wait_s` for some. False when none will come."""
        if not self._streams.get_map():
            time.sleep(wait_s)
            return False
        for key, _ in self._streams.select(wait_s):
            if not key.data.pump():
                self._close_stream(key.data)
        return True

    def _close_stream(self, stream: EchoedStream) -> None:
        self._streams.unregister(stream.fd)
        stream.close()

    def _open_streams(self) -> list[EchoedStream]:
        return [key.data for key in self._streams.get_map().values()]

    def _running(self) -> list[RankProcess]:
        return [rank for rank in self._ranks if rank not in self._ended]

    def _note_ended(self) -> None:
        for rank in self._running():
            if rank.poll() is not None:
                self._ended.append(rank)
                rank.kill_group()  # what it started and did not end

    def _pass_signals_on(self) -> None:
        while self._signals:
            signum = self._signals.pop(0)
            if signum == signal.SIGWINCH:
                for stream in self._open_streams():
                    stream.follow_window_size()
            elif self._stop_signal is None:
                self._stop_signal, self._stopped_at = signum, time.monotonic()
                for rank in self._running():
                    rank.send(signum)
            elif time.monotonic() > self._stopped_at + _REPEAT_S:
                self._give_up(
                    f"killed by a second signal ({signal_name(signum)}); what was not saved is lost"
                )

    def _end_after_failure(self) -> None:
        running = self._running()
        now = time.monotonic()
        if self._kill_at is None and any(rank.poll() not in GOOD_ENDS for rank in self._ended):
            self._kill_at = now + self._job.grace_s
            for rank in running:
                rank.stopped_by_us = True
                rank.send(signal.SIGTERM)
        elif self._kill_at is not None and now > self._kill_at:
            for rank in running:
                rank.kill_group()
        elif self._give_up_at is not None and now > self._give_up_at and running:
            names = ", ".join(str(rank.rank) for rank in running)
            self._give_up(
                f"the job did not end within {self._job.timeout_s:g} s; ranks still running: {names}"
            )

    def _give_up(self, reason: str) -> None:
        self._gave_up = self._gave_up or f"{reason}. Logs: {self._job.log_dir}"
        for rank in self._running():
            rank.kill_group()


def _exit_of(rank: RankProcess) -> RankExit:
    code = rank.poll()
    assert code is not None, "watch() has seen it end"
    return RankExit(
        rank=rank.rank,
        code=code,
        log=rank.log,
        output=rank_logs.read_log(rank.log, rank.log_start),
        stopped_by_us=rank.stopped_by_us,
    )


@contextmanager
def _signals_noted(world: LocalWorld) -> Iterator[None]:
    """Send signals to `world` while the block runs; those that are ignored (nohup, `&`) stay ignored."""
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)
    before = {signum: signal.getsignal(signum) for signum in watched}
    for signum, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(signum, world.note_signal)
    try:
        yield
    finally:
        for signum, handler in before.items():
            if handler is not None:
                signal.signal(signum, handler)
