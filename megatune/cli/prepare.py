"""`megatune prepare`."""

import sys
from pathlib import Path

from rich.console import Console

from megatune.config import load_run
from megatune.launch.run_folder import RunFolder


def prepare_run(run_file: Path, overrides: list[str], preview_rows: int) -> None:
    """Prepare both splits and say what came out; show the first rows if asked."""
    loaded = load_run(run_file, overrides)
    for notice in loaded.notices:
        print(f"megatune: {notice}", file=sys.stderr)
    from megatune.data.preview import preview
    from megatune.train.inputs import open_tokenizer, prepare_inputs

    run = loaded.run
    inputs = prepare_inputs(run, RunFolder(run.train.output_dir))
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
