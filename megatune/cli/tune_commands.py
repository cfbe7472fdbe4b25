"""The commands that find good settings by starting runs."""

import sys
from pathlib import Path

import typer

from megatune.cli.arguments import AsJson, Overrides, RunFile

_Objective = typer.Option(
    "tokens_per_second",
    "--objective",
    help="tokens_per_second, tokens_per_gpu_hour or memory; or a sum, as tokens_per_second=0.7,memory=0.3.",
)
_Clock = typer.Option(
    "auto", "--clock", help="wall, cpu (processor time of the ranks), or auto: cpu on a CPU machine in use."
)
_TuneOnSlurm = typer.Option(
    None, "--slurm", help="Hand the tune to Slurm: 1 tunes inside one job, more are an array that shares it."
)
_Values = typer.Option(
    None, "--try", metavar="KEY=V1,V2", help="Values of a knob, in place of those that would be tried."
)
_Calibrate = typer.Option(
    False, "--calibrate", help="Let later plans use what the trials measured, as plan --calibrate."
)


def search(
    run_file: Path = RunFile,
    overrides: list[str] | None = Overrides,
    space: Path | None = typer.Option(None, "--space", help="The space file: keys and the values to try."),
    sampler: str = typer.Option("tpe", "--sampler", help="tpe, random or grid."),
    trials: int | None = typer.Option(None, "--trials", help="Trials in all; 20 where nothing is said."),
    pruner: str | None = typer.Option(
        None, "--pruner", help="none, median or hyperband; median where evaluate.eval_steps is given."
    ),
    seed: int = typer.Option(0, "--seed", help="Decides what is drawn."),
    slurm: int | None = typer.Option(
        None, "--slurm", help="Hand the search to Slurm: an array of so many workers that share it."
    ),
    worker: bool = typer.Option(
        False, "--worker", hidden=True, help="Train trials of the search whose run.yaml is RUN.yaml."
    ),
    results: bool = typer.Option(False, "--results", help="Show what was found so far, and train nothing."),
    suggest: bool = typer.Option(
        False, "--suggest", help="Suggest a learning rate and a batch: by rule, and by a range test."
    ),
    range_steps: int = typer.Option(
        100, "--range-steps", help="Steps of the range test of --suggest; 0 leaves it out."
    ),
    as_json: bool = AsJson,
) -> None:
    """Search hyper-parameters: train with many values, and keep those with the lowest validation loss.

    The same command goes on after an interruption.

    Example: megatune search run.yaml --space space.yaml --trials 30
    """
    from megatune.cli.search import SearchCommand, search_run, work_for
    from megatune.tune.search.begin import SearchOptions

    options = SearchOptions(sampler=sampler, pruner=pruner, num_trials=trials, seed=seed)
    if worker:
        sys.exit(work_for(run_file))
    command = SearchCommand(
        space=space,
        options=options,
        num_workers=slurm,
        results_only=results,
        range_steps=range_steps if suggest else None,
        as_json=as_json,
    )
    sys.exit(search_run(run_file, overrides or [], command))


def tune(
    run_file: Path = RunFile,
    overrides: list[str] | None = Overrides,
    trials: int = typer.Option(16, "--trials", help="Trials in all, repeated ones counted each time."),
    steps: int = typer.Option(
        5, "--steps", help="Timed steps of a first trial; later ones take twice as many."
    ),
    warmup: int = typer.Option(2, "--warmup", help="Steps before them that are not timed."),
    minutes: float = typer.Option(15.0, "--minutes", help="What one trial may take, loading counted."),
    objective: str = _Objective,
    clock: str = _Clock,
    values: list[str] | None = _Values,
    fix: list[str] | None = typer.Option(None, "--fix", metavar="KEY", help="Keep the run file's value."),
    shortlist: int = typer.Option(24, "--shortlist", help="Layouts of the planner that are looked at."),
    gpu: str | None = typer.Option(
        None, "--gpu", help="The GPU's name in the planner's table; else the driver's."
    ),
    slurm: int | None = _TuneOnSlurm,
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be tried and why; start nothing."),
    results: bool = typer.Option(False, "--results", help="Show what was found so far; start nothing."),
    calibrate: bool = _Calibrate,
    worker: bool = typer.Option(False, "--worker", hidden=True, help="Make trials of the tune of RUN.yaml."),
    as_json: bool = AsJson,
) -> None:
    """Tune the layout: measure the planner's candidates in short trials, and write the winner's run file.

    The same command goes on after an interruption.

    Example: megatune tune run.yaml --trials 16 --try parallel.tp_size=1,2
    """
    from megatune.cli.tune import TuneCommand, tune_run, work_for
    from megatune.tune.layouts.begin import TuneOptions

    if worker:
        sys.exit(work_for(run_file))
    options = TuneOptions(
        num_trials=trials,
        steps=steps,
        warmup_steps=warmup,
        minutes=minutes,
        objective=objective,
        clock=clock,
        gpu=gpu,
        tried=tuple(values or ()),
        fixed=tuple(fix or ()),
        shortlist=shortlist,
        on_slurm=slurm is not None,
    )
    command = TuneCommand(
        options=options,
        num_workers=slurm,
        dry_run=dry_run,
        results_only=results,
        calibrate=calibrate,
        as_json=as_json,
    )
    sys.exit(tune_run(run_file, overrides or [], command))


def register(app: typer.Typer) -> None:
    """Add all commands to `app`."""
    app.command()(search)
    app.command()(tune)
