"""`megatune tune`."""

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from megatune.cli.calibrate import calibrated_lines, calibrated_object
from megatune.cli.named import names_run_file
from megatune.cli.tune_view import dry_run_views, result_views
from megatune.cli.workers import show_found, show_handed_in, work
from megatune.config import LoadedRun, load_run
from megatune.errors import ConfigError
from megatune.launch.calibrate import calibrate
from megatune.launch.slurm.command import call
from megatune.launch.slurm.workers_job import WorkersJob, build_workers_request, submit_workers
from megatune.report.tables import show
from megatune.tune.layouts.begin import TuneOptions, begin_tune, define_tune, tune_folder
from megatune.tune.layouts.best_file import write_best
from megatune.tune.layouts.candidates import Tuned
from megatune.tune.layouts.definition import Definition
from megatune.tune.layouts.expect import Forecaster
from megatune.tune.layouts.halving import Forecast, Next
from megatune.tune.layouts.journal import TuneFolder
from megatune.tune.layouts.picture import draw_tune
from megatune.tune.layouts.result import read_tune
from megatune.tune.layouts.worker import Worker

_HOW_TO_CALIBRATE = ("plans of this place do not know of these trials: --results --calibrate lets them",)


@dataclass(frozen=True, kw_only=True)
class TuneCommand:
    """What is to be done, beside what is tuned."""

    options: TuneOptions
    num_workers: int | None = None
    """Workers to hand to Slurm; None tunes here."""
    dry_run: bool = False
    results_only: bool = False
    calibrate: bool = False
    """Let later plans use what the trials measured."""
    as_json: bool = False


@names_run_file
def tune_run(run_file: Path, overrides: list[str], command: TuneCommand) -> int:
    """Tune, or go on with a tune. Returns 0, 75 when stopped before the end, 1 when no layout trained."""
    if command.results_only:
        return show_result(tune_folder(load_run(run_file, overrides)), command)
    if command.calibrate and (command.dry_run or command.num_workers is not None):
        raise ConfigError(
            ["--calibrate needs trials that have ended; give it with --results when the tune is done."],
            source="megatune tune",
        )
    folder, definition, loaded = define_tune(run_file, overrides, command.options)
    if command.dry_run:
        return _show_plan(definition, run_file, overrides, as_json=command.as_json)
    if command.num_workers is not None:
        return _tune_on_slurm(run_file, loaded, folder, definition, command)
    begun = begin_tune(folder, definition, loaded)
    return _work(folder, begun) or show_result(folder, command)


def work_for(run_file: Path) -> int:
    """Be a worker of the tune in the folder of `run_file`: make trials until none is left."""
    return _work(TuneFolder(run_file.absolute().parent), None)


def _work(folder: TuneFolder, definition: Definition | None) -> int:
    if definition is not None:
        rules = definition.rules
        print(f"megatune: measured by {rules.clock_words} ({rules.clock_why})", file=sys.stderr)
    return work(lambda stop: Worker(folder, stop, definition).work(), "tune")


def _tune_on_slurm(
    run_file: Path, loaded: LoadedRun, folder: TuneFolder, definition: Definition, command: TuneCommand
) -> int:
    assert command.num_workers is not None, "asked by the caller"
    workers = WorkersJob("tune", folder.path, spans_nodes=True)
    request = build_workers_request(loaded, workers, run_file, command.num_workers)
    begin_tune(folder, definition, loaded)
    job = submit_workers(request, workers, call)
    return show_handed_in(
        job,
        workers,
        {"workers": command.num_workers},
        words=f"{command.num_workers} worker(s)",
        afterwards=f"results: megatune tune {shlex.quote(str(run_file))} --results",
        as_json=command.as_json,
    )


def show_result(folder: TuneFolder, command: TuneCommand) -> int:
    """Print what a tune has found so far, and write best.yaml and the picture. 1 when no layout trained.

    Raises PlanError where the planner is to learn from the trials and cannot.
    """
    result = read_tune(folder)
    if result is None:
        raise ConfigError([f"there is no tune in {folder.path}."], source="megatune tune")
    best_file = picture = None
    if result.best is not None:
        write_best(result, result.best)
        best_file = folder.best_file
        picture = folder.picture if draw_tune(result, folder.picture) else None
    fitted = calibrate(result.good_runs) if command.calibrate else None
    learnt = _HOW_TO_CALIBRATE if fitted is None else calibrated_lines(fitted)
    show_found(
        {**result.as_object(), "calibration": None if fitted is None else calibrated_object(fitted)},
        lambda best, drawn: [*result_views(result, best, drawn), *map(Text, learnt)],
        folder=folder.path,
        best_file=best_file,
        picture=picture,
        as_json=command.as_json,
    )
    return 0 if result.best is not None or result.num_open else 1


def _show_plan(definition: Definition, run_file: Path, overrides: list[str], *, as_json: bool) -> int:
    """What would be tried, in which order as far as it does not depend on what will be measured."""
    tuned = Tuned(run_file=run_file, overrides=overrides, machine=definition.machine)
    order = list(_order(definition, definition.forecaster(tuned)))
    answer = {"schema": 1, "dry_run": True, **_plan_object(definition, order)}
    views: list[RenderableType] = dry_run_views(definition, order)
    show(answer, *views, as_json=as_json)
    return 0


def _order(definition: Definition, forecaster: Forecaster) -> Iterator[int]:
    """The reference, then all others as the planner ranks them: the first trials, if it is right."""
    first = definition.next_trial([], forecaster)
    assert isinstance(first, Next), "with no trial there is one to make"
    yield first.candidate
    expected: Forecast = forecaster.forecast([])
    others = [one.number for one in definition.space.candidates if one.number != first.candidate]
    yield from sorted(others, key=lambda number: (expected[number][0].value, number))


def _plan_object(definition: Definition, order: list[int]) -> dict[str, Any]:
    entry = definition.as_object()
    by_number = {one["number"]: one for one in entry["candidates"]}
    return {
        "rules": entry["rules"],
        "machine": entry["machine"],
        "varied": entry["varied"],
        "left_out": entry["left_out"],
        "candidates": [by_number[number] for number in order],
    }
