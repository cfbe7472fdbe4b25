"""`megatune train`."""

import faulthandler
import os
import shlex
import socket
import sys
from collections.abc import Iterable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

from megatune.cli.named import names_run_file
from megatune.config import LoadedRun, load_run
from megatune.errors import ConfigError, NotPreparedError
from megatune.launch.imports import uncollected
from megatune.launch.launchers import refuse_other_launcher
from megatune.launch.ports import PortTakenError
from megatune.launch.processes import STOPPED_BUT_SAVED, Start, name_this_process
from megatune.launch.rank_info import RankInfo
from megatune.launch.rank_logs import header
from megatune.launch.ranks import discover_rank, export_rank, log_title, own_slurm_job
from megatune.launch.verdict import PORT_TAKEN

_ALLOW_CHANGE = "checkpoint.allow_change=true"
_ENDS_OTHERS = ("slurm", "mpi")
"""Launchers that end all ranks when one has ended with another code than 0, 75 among them."""


@names_run_file
def train_run(
    run_file: Path, overrides: list[str], *, allow_change: bool = False, start: Start | None = None
) -> int:
    """Train as this process's rank, or start the ranks, with `start` if given. Returns the exit code."""
    overrides = [*overrides, _ALLOW_CHANGE] if allow_change else overrides
    title = log_title()
    if title is not None:
        print(header(f"{title} on {socket.gethostname()}: megatune train {run_file}"), flush=True)
    loaded = load_run(run_file, overrides)
    launch = loaded.run.launch
    rank = discover_rank(launcher=launch.launcher)
    refuse_other_launcher(
        launch.launcher,
        rank,
        run_file=str(run_file),
        num_nodes=launch.nodes,
        in_allocation=own_slurm_job() is not None,
    )
    if rank is None:
        return _start_ranks(loaded, run_file, overrides, start)
    try:
        code = _be_rank(loaded, rank)
    except NotPreparedError as error:
        raise _unprepared(error, rank, run_file, overrides) from None
    if code == STOPPED_BUT_SAVED and rank.launcher in _ENDS_OTHERS:
        _end_at_once(code)
    return code


def _unprepared(
    error: NotPreparedError, rank: RankInfo, run_file: Path, overrides: Sequence[str]
) -> ConfigError:
    """The refusal to prepare while other nodes wait, with the commands that prepare."""
    command = shlex.join(["megatune", "prepare", str(run_file), *overrides])
    together = "srun --mpi=pmix --ntasks=N" if rank.launcher == "slurm" else "mpirun -n N"
    return ConfigError(
        [
            f"{error}, and {rank.world_size} ranks on {rank.nodes} nodes would wait while one of them does it. "
            f"Prepare first with `{command}` (faster by many processes: `{together} {command}`), or use "
            "`megatune submit`, whose job does it before its ranks start."
        ],
        source=str(run_file),
    )


def _be_rank(loaded: LoadedRun, rank: RankInfo) -> int:
    export_rank(rank)
    name_this_process(f"rank-{rank.rank}")
    if rank.launcher != "local":
        _print_at_once()
        if rank.rank == 0:  # our own launcher has told them already
            _tell(loaded.notices)
    from megatune.train.stopping import StopRequest

    stop = StopRequest()
    stop.listen()  # before torch is imported: that takes seconds, and a signal would end the process
    with uncollected():
        from megatune.train.rank import train_rank

    try:
        return train_rank(loaded, rank, stop)
    except PortTakenError as error:
        if rank.launcher != "slurm":
            raise
        print(f"megatune: {error}", file=sys.stderr)
        return PORT_TAKEN  # the batch script starts the step again, which meets at another port


def _start_ranks(loaded: LoadedRun, run_file: Path, overrides: list[str], start: Start | None) -> int:
    with uncollected():
        from megatune.train.job import interrupted, train_job

    _tell(loaded.notices)
    arguments = [str(run_file), *overrides]
    code = train_job(loaded, arguments, start)
    output_dir = Path(loaded.run.train.output_dir)
    if code == 0:
        from megatune.cli.report import report_run

        report_run(output_dir, as_json=False)
    elif code == STOPPED_BUT_SAVED:
        # What was allowed is saved by now: the next start needs no permission.
        print(interrupted(loaded.run, [each for each in arguments if each != _ALLOW_CHANGE]))
    return code


def _print_at_once() -> None:
    """What a launched rank prints must be in its log even when it is killed, and where a fault happened too."""
    faulthandler.enable()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def _end_at_once(code: int) -> NoReturn:
    """End without taking the interpreter down, which takes some ranks seconds longer than others.

    srun and mpirun would kill those, and then report a killed rank instead of 75.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _tell(notices: Iterable[str]) -> None:
    for notice in notices:
        print(f"megatune: {notice}", file=sys.stderr)
