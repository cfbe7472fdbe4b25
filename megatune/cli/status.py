"""`megatune status`."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live

from megatune.cli.status_view import line_of, show_many, show_one
from megatune.errors import ConfigError
from megatune.launch.find_run import find_run
from megatune.launch.run_folder import RunFolder
from megatune.launch.run_status import RunStatus, run_statuses, utc_now
from megatune.launch.slurm.command import Call, call
from megatune.launch.slurm.history import remembered_runs
from megatune.report.tables import show

_REFRESH_S = 5.0  # kind to the Slurm controller, which every user asks


def show_status(
    run: Path | None,
    *,
    everything: bool,
    watch: bool,
    as_json: bool,
    call: Call = call,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Show one run, all runs that were submitted, or (with neither) those that wait or run.

    Returns 1 when some of them have a broken file, and are not among those shown; else 0.
    """
    if run is not None and everything:
        raise ConfigError(["give a RUN or --all, not both."], source="megatune status")
    if watch and as_json:
        raise ConfigError(["--watch shows, --json answers once: use one of them."], source="megatune status")
    folders = [find_run(run)] if run is not None else [RunFolder(folder) for folder in remembered_runs()]

    problems: list[str] | None = None if run is not None else []

    def ask() -> list[RunStatus]:
        found = run_statuses(folders, with_digest=run is not None, call=call, problems=problems)
        return [status for status in found if run is not None or everything or status.is_active]

    if watch:
        _watch(ask, one=run is not None, sleep=sleep)
    else:
        statuses = ask()
        answer = {"schema": 1, "runs": [status.as_object(utc_now()) for status in statuses]}
        show(answer, *_pictures(statuses, one=run is not None), as_json=as_json)
    for problem in dict.fromkeys(problems or ()):
        print(f"megatune: not shown: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _pictures(statuses: Sequence[RunStatus], *, one: bool) -> list[RenderableType]:
    return show_one(statuses[0], utc_now()) if one else show_many(statuses)


def _watch(ask: Callable[[], list[RunStatus]], *, one: bool, sleep: Callable[[float], None]) -> None:
    """Show what `ask` gives until nothing more will happen, or until Ctrl-C."""
    console = Console()
    follow = _redraw if console.is_terminal and not console.is_dumb_terminal else _print_changes
    try:
        last = follow(_until_the_end(ask, sleep), one, console)
    except KeyboardInterrupt:
        return  # that is how one stops watching
    if follow is _print_changes and one and last and last[0].digest:
        print(last[0].digest.text, flush=True)


def _until_the_end(
    ask: Callable[[], list[RunStatus]], sleep: Callable[[float], None]
) -> Iterator[list[RunStatus]]:
    while True:
        statuses = ask()
        yield statuses
        if all(status.has_ended for status in statuses):
            return
        sleep(_REFRESH_S)


def _redraw(answers: Iterator[list[RunStatus]], one: bool, console: Console) -> list[RunStatus]:
    statuses: list[RunStatus] = []
    with Live(console=console, auto_refresh=False) as live:
        for statuses in answers:
            live.update(Group(*_pictures(statuses, one=one)), refresh=True)
    return statuses


def _print_changes(answers: Iterator[list[RunStatus]], one: bool, console: Console) -> list[RunStatus]:
    del one, console
    statuses: list[RunStatus] = []
    shown: dict[Path, str] = {}
    for statuses in answers:
        for status in statuses:
            line = line_of(status)
            if shown.get(status.folder.path) != line:
                print(line, file=sys.stdout, flush=True)
            shown[status.folder.path] = line
    return statuses
