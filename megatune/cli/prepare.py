"""`megatune prepare`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from megatune.config import LoadedRun, load_run
from megatune.errors import MegatuneError
from megatune.launch.run_folder import RunFolder

if TYPE_CHECKING:
    from megatune.data.team import Team


def prepare_run(run_file: Path, overrides: list[str], preview_rows: int) -> int:
    """Prepare both splits and say what came out; show the first rows if asked. Returns the exit code.

    Under mpirun every process calls this: they share the work, and the first one does the talking.
    """
    from megatune.data.mpi_team import find_team

    team = find_team()
    try:
        loaded = team.each(lambda: load_run(run_file, overrides))
        _prepare(loaded, preview_rows, team)
    except MegatuneError as error:
        if team.rank == 0:
            raise
        return error.exit_code  # the first process tells it
    return 0


def _prepare(loaded: LoadedRun, preview_rows: int, team: "Team") -> None:
    from megatune.data.preview import preview
    from megatune.train.inputs import open_tokenizer, prepare_inputs

    run = loaded.run
    if team.rank == 0:
        for notice in loaded.notices:
            print(f"megatune: {notice}", file=sys.stderr)
    inputs = prepare_inputs(run, RunFolder(run.train.output_dir), team)
    if team.rank != 0:
        return
    for name, prepared in (("train", inputs.train), ("validation", inputs.validation)):
        if prepared is None:
            continue
        print(
            f"{name}: {prepared.num_examples} examples in {prepared.num_rows} rows of {run.data.max_seq_length} "
            f"tokens, {prepared.num_tokens} tokens of which {prepared.num_targets} are trained, "
            f"{prepared.report.fill_ratio:.1%} of the room filled: {prepared.folder}"
        )
        for notice in prepared.report.notices(run.data.max_seq_length):
            print(f"{name}: {notice}")
    if preview_rows:
        Console().print(preview(inputs.train, open_tokenizer(run, inputs.source), preview_rows))
