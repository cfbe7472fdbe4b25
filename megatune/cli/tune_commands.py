"""The commands that find good settings by starting runs."""

import sys
from pathlib import Path

import typer

from megatune.cli.arguments import AsJson, Overrides, RunFile


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


def register(app: typer.Typer) -> None:
    """Add all commands to `app`."""
    app.command()(search)
