"""`megatune prepare`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from megatune.cli.arguments import before_torch
from megatune.cli.named import names_run_file
from megatune.config import LoadedRun, Run, load_run
from megatune.errors import MegatuneError
from megatune.launch.run_folder import RunFolder
from megatune.report.tables import to_json
from megatune.units import counted

if TYPE_CHECKING:
    from megatune.data.prepared import PreparedSet
    from megatune.data.team import Team
    from megatune.train.inputs import Inputs


@names_run_file
def prepare_run(run_file: Path, overrides: list[str], preview_rows: int, *, as_json: bool) -> int:
    """Prepare all splits and say what came out; show the first rows if asked. Returns the exit code.

    Under mpirun every process calls this: they share the work, and the first one does the talking.
    """
    from megatune.data.mpi_team import find_team

    team = find_team()
    try:
        loaded = team.each(lambda: load_run(run_file, overrides))
        _prepare(loaded, preview_rows, team, as_json)
    except MegatuneError as error:
        if team.rank == 0:
            raise
        return error.exit_code  # the first process tells it
    return 0


def _prepare(loaded: LoadedRun, preview_rows: int, team: "Team", as_json: bool) -> None:
    from megatune.data.receipt import keep, kept_sets, look

    run = loaded.run
    if team.rank == 0:
        for notice in loaded.notices:
            print(f"megatune: {notice}", file=sys.stderr)
    folder = RunFolder(run.train.output_dir)
    seen = look(run) if team.rank == 0 else None
    sets = kept_sets(run, seen) if folder.data_picture.exists() else None
    if preview_rows or not team.first(lambda: sets is not None):
        inputs = _make(run, folder, team)
        sets = inputs.splits
        if team.rank == 0:
            keep(run, seen, sets)
            _show(sets, folder, as_json)
            _preview(run, inputs, preview_rows, as_json)
    elif team.rank == 0 and sets is not None:
        _show(sets, folder, as_json)


def _make(run: Run, folder: RunFolder, team: "Team") -> "Inputs":
    """Prepare, or find the sets by what they are made of; loads the tokenizer, and with it torch."""
    before_torch()
    from megatune.data.quality_picture import draw_quality
    from megatune.train.inputs import prepare_inputs

    inputs = prepare_inputs(run, folder, team)
    if team.rank == 0:
        draw_quality(inputs.splits, folder.data_picture)
    return inputs


def _preview(run: Run, inputs: "Inputs", num_rows: int, as_json: bool) -> None:
    from megatune.data.preview import preview
    from megatune.train.inputs import open_tokenizer

    if num_rows:
        shown = preview(inputs.train, open_tokenizer(run, inputs.source), num_rows)
        Console(stderr=as_json).print(shown)


def _show(sets: "dict[str, PreparedSet]", folder: RunFolder, as_json: bool) -> None:
    from megatune.data.notices import num_leaked, shared_notices

    if as_json:
        print(
            to_json(
                {
                    "schema": 1,
                    "splits": {name: _as_object(one) for name, one in sets.items()},
                    "rows_in_train": num_leaked(sets),
                    "between_splits": shared_notices(sets),
                    "picture": str(folder.data_picture),
                }
            )
        )
        return
    for name, prepared in sets.items():
        print("\n".join(_told(name, prepared)))
    for notice in shared_notices(sets):
        print(notice)
    print(f"picture: {folder.data_picture}")


def _told(name: str, prepared: "PreparedSet") -> list[str]:
    from megatune.data.quality import report_lines

    longest, report = prepared.max_seq_length, prepared.report
    return [
        f"{name}: {counted(prepared.num_examples, 'example')} in {counted(prepared.num_rows, 'row')} of "
        f"{longest} tokens, {prepared.num_tokens} tokens of which {prepared.num_targets} are trained, "
        f"{report.fill_ratio:.1%} of the room filled: {prepared.folder}",
        *(f"{name}: {notice}" for notice in report.notices(longest)),
        *report_lines(name, report, longest),
    ]


def _as_object(prepared: "PreparedSet") -> dict[str, object]:
    from dataclasses import asdict

    counts = (
        "fingerprint",
        "num_rows",
        "num_examples",
        "num_tokens",
        "num_targets",
        "max_seq_length",
        "packed",
    )
    return {
        "folder": str(prepared.folder),
        **{name: getattr(prepared, name) for name in counts},
        "report": asdict(prepared.report),
        "notices": prepared.report.notices(prepared.max_seq_length),
    }
