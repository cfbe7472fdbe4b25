"""The commands around a cluster: hand in a run, look at it, end it, check the machines."""

import sys
from collections.abc import Callable
from pathlib import Path

import typer

from megatune.cli.arguments import AsJson, Overrides


def submit(
    run_file: Path | None = typer.Argument(None, help="The run file (YAML).", metavar="[RUN.yaml]"),
    overrides: list[str] | None = Overrides,
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the script and submit nothing."),
    lint: bool = typer.Option(False, "--lint", help="Only check the script that would be submitted."),
    chain: str | None = typer.Option(
        None,
        "--chain",
        help="Submit so many jobs, each after the one before; auto: as many as the ETA needs.",
    ),
    eta: str | None = typer.Option(
        None, "--eta", help="Time the whole run needs (HH:MM:SS), if you know it."
    ),
    array: list[Path] = typer.Option(
        [], "--array", help="Run files to submit as one job array; can be given several times."
    ),
    sweep: list[str] = typer.Option(
        [],
        "--sweep",
        help="key.sub=a,b,c: one run of a job array for each value (each combination of several).",
    ),
    as_json: bool = AsJson,
) -> None:
    """Submit a run to Slurm, from a login node without GPU.

    Example: megatune submit run.yaml slurm.time=04:00:00 --dry-run
    """
    from megatune.cli.submit import SubmitOptions, submit_run

    options = SubmitOptions(
        dry_run=dry_run,
        lint=lint,
        chain=chain,
        eta=eta,
        array=tuple(array),
        sweep=tuple(sweep),
        as_json=as_json,
    )
    sys.exit(submit_run(run_file, overrides or [], options))


def lint(
    script: Path = typer.Argument(help="A batch script.", metavar="JOB.sbatch"),
    run_file: Path | None = typer.Option(None, "--run", help="The run file that the script trains."),
    as_json: bool = AsJson,
) -> None:
    """Look for mistakes in a batch script of your own: each with its line and the fix.

    Example: megatune lint job.sbatch --run run.yaml
    """
    from megatune.cli.lint import lint_script_file

    sys.exit(lint_script_file(script, run_file, as_json=as_json))


def status(
    run: Path | None = typer.Argument(None, help="A run folder or a run file.", metavar="[RUN]"),
    everything: bool = typer.Option(
        False, "--all", help="All runs you have submitted; else those that wait or run."
    ),
    watch: bool = typer.Option(False, "--watch", help="Refresh until the job ends."),
    as_json: bool = AsJson,
) -> None:
    """Show a run's job and progress: state, reason, step, loss, speed, time left, and why it failed.

    Example: megatune status runs/first
    """
    from megatune.cli.status import show_status

    sys.exit(show_status(run, everything=everything, watch=watch, as_json=as_json))


def logs(
    run: Path = typer.Argument(help="A run folder or a run file.", metavar="RUN"),
    rank: int | None = typer.Option(None, "--rank", help="The log of this rank instead of the first's."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on printing what is added."),
    num_lines: int = typer.Option(40, "--lines", "-n", help="Lines from the end."),
) -> None:
    """Print the end of a run's logs.

    Example: megatune logs runs/first --rank 3
    """
    from megatune.cli.logs import show_logs

    sys.exit(show_logs(run, rank=rank, follow=follow, num_lines=num_lines))


def cancel(
    run: Path = typer.Argument(help="A run folder or a run file.", metavar="RUN"),
    now: bool = typer.Option(False, "--now", help="Do not let the run save first."),
    as_json: bool = AsJson,
) -> None:
    """Cancel the jobs of a run: what runs saves and stops, what waits leaves the queue.

    Example: megatune cancel runs/first
    """
    from megatune.cli.cancel import cancel_run

    sys.exit(cancel_run(run, now=now, as_json=as_json))


def doctor(
    run_file: Path | None = typer.Argument(None, help="The run file (YAML).", metavar="[RUN.yaml]"),
    overrides: list[str] | None = Overrides,
    nodes: int | None = typer.Option(None, "--nodes", help="Nodes that must answer."),
    limit_s: float = typer.Option(120.0, "--limit", help="Seconds for all checks together."),
    as_json: bool = AsJson,
) -> None:
    """Check the machines before a run: versions, network, disks, memory, speed of each device and link.

    Inside an allocation: srun --ntasks-per-node=4 megatune doctor run.yaml

    Example: megatune doctor run.yaml
    """
    from megatune.cli.doctor import run_doctor

    sys.exit(run_doctor(run_file, overrides or [], nodes=nodes, limit_s=limit_s, as_json=as_json))


def register(app: typer.Typer) -> None:
    """Add all commands to `app`."""
    commands: list[Callable[..., None]] = [submit, lint, status, logs, cancel, doctor]
    for command in commands:
        app.command()(command)
