"""`megatune search`."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from megatune.config import load_run
from megatune.errors import ConfigError
from megatune.files import write_text_atomic
from megatune.launch.processes import STOPPED_BUT_SAVED
from megatune.launch.slurm.command import call
from megatune.report.tables import render_table, show
from megatune.tune.search.begin import SearchOptions, begin_search, search_folder
from megatune.tune.search.best_file import best_yaml
from megatune.tune.search.folder import SearchFolder
from megatune.tune.search.picture import draw_search
from megatune.tune.search.result import SearchResult, TrialResult, read_result
from megatune.tune.search.study import open_study
from megatune.tune.search.worker import Worker
from megatune.tune.search.workers_job import build_workers_request, submit_workers
from megatune.tune.trial import StopSignals
from megatune.units import format_duration, format_ratio


@dataclass(frozen=True, kw_only=True)
class SearchCommand:
    """What is to be done, beside what is searched."""

    space: Path | None
    options: SearchOptions
    num_workers: int | None = None
    """Workers to hand to Slurm; None searches here."""
    results_only: bool = False
    as_json: bool = False


def search_run(run_file: Path, overrides: list[str], command: SearchCommand) -> int:
    """Search, or go on with a search. Returns 0, 75 when stopped before the end, 1 when no trial ended well."""
    if command.results_only:
        return show_result(search_folder(load_run(run_file, overrides)), as_json=command.as_json)
    if command.space is None:
        raise ConfigError(
            ["--space is missing: a file that names keys of the run file and the values to try."],
            source="megatune search",
        )
    if command.num_workers is not None:
        return _search_on_slurm(run_file, overrides, command, command.space, command.num_workers)
    folder = begin_search(run_file, overrides, command.space, command.options)
    return _work(folder) or show_result(folder, as_json=command.as_json)


def work_for(run_file: Path) -> int:
    """Be a worker of the search in the folder of `run_file`: train trials until none is left."""
    # Workers end together on several machines: what they found is written by whoever asks for it.
    return _work(SearchFolder(run_file.absolute().parent))


def _work(folder: SearchFolder) -> int:
    with StopSignals() as stop:
        code = Worker(folder, stop).work()
    if code == STOPPED_BUT_SAVED:
        print("megatune: stopped; the same command goes on with the search", file=sys.stderr)
    return code


def _search_on_slurm(
    run_file: Path, overrides: list[str], command: SearchCommand, space: Path, num_workers: int
) -> int:
    loaded = load_run(run_file, overrides)
    request = build_workers_request(loaded, search_folder(loaded), run_file, num_workers)
    folder = begin_search(run_file, overrides, space, command.options)
    job = submit_workers(request, folder, call)
    answer = {
        "schema": 1,
        "folder": str(folder.path),
        "job_id": job.job_id,
        "cluster": job.cluster,
        "workers": num_workers,
    }
    lines = [
        f"submitted job {job.job_id}: {num_workers} worker(s)",
        f"logs: {folder.logs}",
        f"results: megatune search {shlex.quote(str(run_file))} --results",
    ]
    show(answer, *[Text(line) for line in lines], as_json=command.as_json)
    return 0


def show_result(folder: SearchFolder, *, as_json: bool) -> int:
    """Print what a search has found so far, and write best.yaml and the picture. 1 when no trial ended well."""
    result = read_result(open_study(folder.path), folder)
    best_file = picture = None
    if result.best is not None:
        write_text_atomic(folder.best_file, best_yaml(folder.run_file, result, result.best))
        best_file = str(folder.best_file)
        picture = str(folder.picture) if draw_search(result, folder.picture) else None
    answer = {
        "schema": 1,
        "folder": str(folder.path),
        **result.as_object(),
        "best_file": best_file,
        "picture": picture,
    }
    show(answer, *_views(result, best_file, picture), as_json=as_json)
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
