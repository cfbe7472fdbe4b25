"""Runs a job on this machine: starts its ranks, watches them, and leaves none behind.

Whatever happens to this process, SIGKILL included, the kernel ends its ranks.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from megatune.errors import LaunchError
from megatune.launch.local_hangs import HangRule, LocalHangs
from megatune.launch.local_ranks import RanksHere, exit_of, start_ranks
from megatune.launch.ports import LOOPBACK, reserve_port
from megatune.launch.processes import RankProcess, Start, start_process
from megatune.launch.shared_memory import remove_leftovers
from megatune.launch.terminal import Screen
from megatune.launch.verdict import RanksResult, judge
from megatune.launch.watch import Watch

PORT_ATTEMPTS = 3
GRACE_S = 5.0
"""What the ranks have to end by themselves once one of them has failed."""


def run_ranks(
    command: Sequence[str],
    *,
    num_ranks: int,
    log_dir: Path,
    timeout_s: float | None = None,
    grace_s: float = GRACE_S,
    extra_env: Mapping[str, str] | None = None,
    echo_rank: int | None = 0,
    first_port: int | None = None,
    hang_rule: HangRule | None = None,
    start: Start = start_process,
) -> RanksResult:
    """Run `command` as `num_ranks` ranks of one job on this machine until all have ended.

    Every rank gets the variables of `launch/ranks.py` and appends to `log_dir`/rank-NNNNN.log;
    what `echo_rank` prints also appears here. When a rank fails, the others are told to end and
    are killed after `grace_s` seconds. The first SIGINT, SIGTERM or SIGUSR2 (SIGHUP counts as
    SIGTERM, SIGUSR1 as SIGUSR2) is passed on to the ranks, which save and stop; the second kills them. After
    `timeout_s` seconds the job is ended as failed. `first_port`: try MASTER_PORT upwards from here.
    `hang_rule`: end the ranks when one of those that write beats shows no progress. `start`: how a rank
    is started; that of a `ForkServer` costs no interpreter.

    Call it from the main thread. Raises LaunchError when the ranks cannot be started.
    """
    if num_ranks < 1:
        raise LaunchError(f"asked for {num_ranks} ranks; a job needs 1 or more")
    log_dir = log_dir.absolute()
    make_log_dir(log_dir)
    tried: set[int] = set()

    def run_once() -> RanksResult:
        with reserve_port(first_port, avoid=tried) as port:
            tried.add(port)
            ranks = RanksHere(
                command=command,
                num_ranks=num_ranks,
                first_rank=0,
                world_size=num_ranks,
                master_addr=LOOPBACK,
                master_port=port,
                launcher="local",
                log_dir=log_dir,
                extra_env=extra_env or {},
                echo_rank=echo_rank,
                start=start,
            )
            return _run(ranks, Watch(grace_s=grace_s, timeout_s=timeout_s), hang_rule)

    return with_another_port(run_once)


def with_another_port(run_once: Callable[[], RanksResult]) -> RanksResult:
    """What `run_once` gives, which is called again when another program took its port first."""
    for _ in range(PORT_ATTEMPTS - 1):
        result = run_once()
        if result.port_taken is None:
            return result
        print(
            f"megatune: another program took port {result.port_taken} first; starting the ranks again",
            file=sys.stderr,
        )
    return run_once()


def make_log_dir(log_dir: Path) -> None:
    """Make the folder for the ranks' logs. Raises LaunchError when that is impossible."""
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(f"cannot make the log folder {log_dir}: {error.strerror}") from error


def _run(ranks: RanksHere, watch: Watch[RankProcess], hang_rule: HangRule | None) -> RanksResult:
    hangs = LocalHangs(hang_rule, watch, ranks.num_ranks) if hang_rule else None
    since_s = time.time()
    if hangs is not None:
        watch.on_tick = hangs.look
    with watch.signals_noted():
        try:
            start_ranks(ranks, watch, _screens)
            watch.run()
        finally:
            watch.close()
            remove_leftovers([rank.process.pid for rank in watch.members], since_s=since_s)
    if hangs is not None and hangs.found is not None:
        return hangs.result()
    if watch.gave_up is not None:
        text = f"{watch.gave_up}. Logs: {ranks.log_dir}"
        return RanksResult(exit_code=1, failed_rank=None, failure_text=text, stop_asked=True)
    return judge(
        [exit_of(rank) for rank in watch.ended],
        num_ranks=ranks.world_size,
        port=ranks.master_port,
        echo_rank=ranks.echo_rank,
        stop_signal=watch.stop_signal,
    )


def _screens() -> tuple[Screen, Screen]:
    sys.stdout.flush()
    sys.stderr.flush()
    return Screen(1), Screen(2)
