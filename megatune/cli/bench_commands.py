"""The command that measures."""

import math
import sys
from pathlib import Path

import typer

from megatune.cli.arguments import AsJson, before_torch


def bench(
    suite: str = typer.Argument("smoke", help="A suite of benchmarks/suites, or the path of a suite file."),
    only: list[str] = typer.Option(
        [], "--only", help="Only cases whose name matches, as '*zero3*'; can be given several times."
    ),
    rounds: int | None = typer.Option(
        None, "--rounds", min=1, help="How often each case is run; otherwise as the suite says."
    ),
    compare: Path | None = typer.Option(
        None,
        "--compare",
        metavar="RECORD.json",
        help="An older record of this suite on this kind of machine: say what has become slower.",
    ),
    results: Path = typer.Option(
        Path("benchmarks/results"), "--results", help="Folder that the record is written into."
    ),
    timeout_s: float = typer.Option(1800.0, "--timeout", min=1, help="Seconds a case may take."),
    budget_s: float | None = typer.Option(
        None, "--budget", min=1, help="Seconds for all; cases that would not fit are left out."
    ),
    slurm: Path | None = typer.Option(
        None,
        "--slurm",
        metavar="RUN.yaml",
        help="Hand it in as a job array, a task for each round: the run file's slurm section says on what.",
    ),
    gather: bool = typer.Option(
        False, "--collect", help="With --slurm: the record of the rounds that have ended."
    ),
    worker: bool = typer.Option(False, "--worker", hidden=True, help="Be a task of the array of SUITE."),
    as_json: bool = AsJson,
) -> None:
    """Run a benchmark suite: its cases in turn, round after round, with one record at the end.

    Example: megatune bench peers --only '*zero3*'
    """
    before_torch()
    from megatune.cli.bench import BenchOptions, bench_suite, collect_suite, hand_in_suite, work_for

    if worker:
        sys.exit(work_for(Path(suite)))

    options = BenchOptions(
        only=tuple(only),
        rounds=rounds,
        compare=compare,
        results=results,
        timeout_s=timeout_s,
        budget_s=math.inf if budget_s is None else budget_s,
        as_json=as_json,
        slurm=slurm,
    )
    run = collect_suite if gather else hand_in_suite if slurm is not None else bench_suite
    sys.exit(run(suite, options))


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(bench)
