"""A run on a mixture of sources, as the command line starts it, goes on with it and hands it to others."""

from pathlib import Path

import pytest
import yaml
from command_line import megatune, steps_of

pytestmark = pytest.mark.world


def test_a_run_on_a_mixture_trains_writes_itself_down_and_goes_on(
    run_file: Path, rows_file: Path, output_dir: Path, tmp_path: Path
) -> None:
    sections = yaml.safe_load(run_file.read_text())
    more = tmp_path / "more.jsonl"
    more.write_text('{"body": "one two three"}\n' * 5)
    parts = [
        {"path": str(rows_file), "weight": 1},
        {"path": str(more), "weight": 2, "columns": {"text": "body"}},
    ]
    run_file.write_text(yaml.safe_dump({**sections, "data": {**sections["data"], "train": parts}}))

    first = megatune("train", run_file, "train.max_steps=1", "checkpoint.export_at_end=false")

    assert first.code == 0, first.text
    written = yaml.safe_load((output_dir / "run.yaml").read_text())["data"]["train"]["mixture"]
    assert [part["weight"] for part in written] == [1, 2]
    # The file that the run wrote down is the same run.
    again = megatune("train", output_dir / "run.yaml", "train.max_steps=2")
    assert again.code == 0, again.text
    assert [entry["step"] for entry in steps_of(output_dir)] == [1, 2]
    other = megatune(
        "train", run_file, "train.max_steps=3", f"data.train=[{{path: {more}, columns: {{text: body}}}}]"
    )
    assert other.code == 2
    assert "prepared data: saved " in other.text
