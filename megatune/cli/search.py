"""`megatune search`."""

import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from megatune.cli.arguments import before_torch
from megatune.cli.named import names_run_file
from megatune.cli.workers import show_found, show_handed_in, work
from megatune.config import load_run
from megatune.errors import ConfigError
from megatune.files import write_text_atomic
from megatune.launch.processes import STOPPED_BUT_SAVED
from megatune.launch.slurm.command import call
from megatune.launch.slurm.workers_job import WorkersJob, build_workers_request, submit_workers
from megatune.report.tables import render_table, show
from megatune.tune.search.begin import SearchOptions, begin_search, search_folder
from megatune.tune.search.best_file import best_yaml
from megatune.tune.search.folder import SearchFolder
from megatune.tune.search.picture import draw_search
from megatune.tune.search.result import SearchResult, TrialResult, read_result
from megatune.tune.search.study import open_study
from megatune.tune.search.suggest import Suggestion, suggest, write_suggestion
from megatune.tune.search.worker import Worker
from megatune.tune.trial import StopSignals
from megatune.units import format_count, format_duration, format_ratio


@dataclass(frozen=True, kw_only=True)
class SearchCommand:
    """What is to be done, beside what is searched."""

    space: Path | None
    options: SearchOptions
    num_workers: int | None = None
    """Workers to hand to Slurm; None searches here."""
    results_only: bool = False
    range_steps: int | None = None
    """Suggest a rate and a batch instead of searching: by rule, and by a range test of so many steps."""
    as_json: bool = False


@names_run_file
def search_run(run_file: Path, overrides: list[str], command: SearchCommand) -> int:
    """Search, or go on with a search. Returns 0, 75 when stopped before the end, 1 when no trial ended well."""
    if command.results_only:
        return show_result(search_folder(load_run(run_file, overrides)), as_json=command.as_json)
    if command.range_steps is not None:
        return suggest_for(run_file, overrides, command.range_steps, as_json=command.as_json)
    if command.space is None:
        raise ConfigError(
            ["--space is missing: a file that names keys of the run file and the values to try."],
            source="megatune search",
        )
    if command.num_workers is not None:
        return _search_on_slurm(run_file, overrides, command, command.space, command.num_workers)
    folder = begin_search(run_file, overrides, command.space, command.options)
    return _work(folder) or show_result(folder, as_json=command.as_json)


@names_run_file
def suggest_for(run_file: Path, overrides: list[str], range_steps: int, *, as_json: bool) -> int:
    """Suggest a learning rate and a batch. Returns 0, or 75 when the range test was stopped."""
    before_torch()  # the rows are counted as the optimizer will see them
    folder = search_folder(load_run(run_file, overrides))
    with StopSignals() as stop:
        found = suggest(run_file, overrides, folder, range_steps, stop)
    if found is None:
        print("megatune: stopped; the same command begins the range test anew", file=sys.stderr)
        return STOPPED_BUT_SAVED
    picture = write_suggestion(folder, found)
    space = folder.path / "space.yaml"
    answer = {"schema": 1, **found.as_object(), "space": str(space), "picture": picture and str(picture)}
    show(answer, *_suggestion_views(found, space, picture), as_json=as_json)
    return 0


def _suggestion_views(found: Suggestion, space: Path, picture: Path | None) -> list[RenderableType]:
    tested = found.tested
    rows = [
        {
            "manner": "by rule",
            "learning rate": f"{found.rule_rate:.1e}",
            "sequences a step": found.rule_batch,
            "why": f"{format_count(found.num_params)} parameters; {found.num_rows} rows x {found.epochs:g} epochs",
        }
    ]
    if tested is not None:
        rate = tested.suggested_rate
        told = "n/a" if rate is None else f"{rate:.1e}"
        rows.append(
            {"manner": "range test", "learning rate": told, "sequences a step": "n/a", "why": tested.why}
        )
    lines = [
        f"begin with: train.learning_rate={found.learning_rate:.1e} train.global_batch_size={found.rule_batch}",
        f"search around it: --space {shlex.quote(str(space))}",
        f"picture: {picture or 'n/a'}",
    ]
    return [render_table(rows, title="where to begin"), *map(Text, lines)]


def work_for(run_file: Path) -> int:
    """Be a worker of the search in the folder of `run_file`: train trials until none is left."""
    # Workers end together on several machines: what they found is written by whoever asks for it.
    return _work(SearchFolder(run_file.absolute().parent))


def _work(folder: SearchFolder) -> int:
    return work(lambda stop: Worker(folder, stop).work(), "search")


def _search_on_slurm(
    run_file: Path, overrides: list[str], command: SearchCommand, space: Path, num_workers: int
) -> int:
    loaded = load_run(run_file, overrides)
    workers = WorkersJob("search", search_folder(loaded).path, spans_nodes=False)
    request = build_workers_request(loaded, workers, run_file, num_workers)
    begin_search(run_file, overrides, space, command.options)
    job = submit_workers(request, workers, call)
    return show_handed_in(
        job,
        workers,
        {"workers": num_workers},
        words=f"{num_workers} worker(s)",
        afterwards=f"results: megatune search {shlex.quote(str(run_file))} --results",
        as_json=command.as_json,
    )


def show_result(folder: SearchFolder, *, as_json: bool) -> int:
    """Print what a search has found so far, and write best.yaml and the picture. 1 when no trial ended well."""
    result = read_result(open_study(folder.path), folder)
    best_file = picture = None
    if result.best is not None:
        write_text_atomic(folder.best_file, best_yaml(folder.run_file, result, result.best))
        best_file = folder.best_file
        picture = folder.picture if draw_search(result, folder.picture) else None
    show_found(
        result.as_object(),
        partial(_views, result),
        folder=folder.path,
        best_file=best_file,
        picture=picture,
        as_json=as_json,
    )
    return 0 if result.best is not None or result.num_open else 1


def _views(result: SearchResult, best_file: str | None, picture: str | None) -> list[RenderableType]:
    keys = [axis.key for axis in result.definition.space.axes]
    rows = sorted(result.trials, key=_by_loss)
    table = render_table([_row(trial, keys) for trial in rows], title="trials, the best first")
    best = result.best
    lines = [f"best: {'n/a, no trial has ended' if best is None else _told(best)}"]
    if result.importance is None:
        lines.append("importance: n/a, it takes 10 trials that have ended")
    else:
        shares = ", ".join(f"{key} {format_ratio(share)}" for key, share in result.importance.items())
        lines.append(f"importance (PED-ANOVA): {shares}")
    lines += [f"run file: {best_file or 'n/a'}", f"picture: {picture or 'n/a'}"]
    if result.num_open:
        lines.append(f"{result.num_open} trial(s) wait or run")
    return [table, *[Text(line) for line in lines]]


def _by_loss(trial: TrialResult) -> tuple[bool, float, int]:
    return trial.loss is None, trial.loss or 0.0, trial.number


def _row(trial: TrialResult, keys: list[str]) -> dict[str, object]:
    why = "" if trial.failure is None else f"{trial.failure['class']}: {trial.failure['summary']}"
    return {
        "trial": trial.number,
        "state": trial.state,
        "loss": trial.loss,
        **{key.removeprefix("train."): _short(trial.point.get(key)) for key in keys},
        "time": format_duration(trial.seconds),
        "why": why,
    }


def _short(text: str | None) -> object:
    """A drawn number with five digits, as a table shows it; other values as they are."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _told(best: TrialResult) -> str:
    values = " ".join(f"{key}={text}" for key, text in best.point.items())
    return f"trial {best.number}, validation loss {best.loss:.5f}: {values} ({best.folder})"
