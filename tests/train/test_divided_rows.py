"""Rows that data.val_size takes out of the training rows: those that have a loss are those that are asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import write_model_with_tokenizer

from megatune.config import Run, load_run
from megatune.launch.run_folder import RunFolder
from megatune.train.inputs import prepare_inputs
from megatune.train.score import score_model

NUM_HELD_OUT = 8
TRAIN = [{"text": f"text {n}", "label": "abc"[n % 3]} for n in range(30)]
OTHERS = [{"text": f"other {n}", "label": "c"} for n in range(9)]


def write_divided(folder: Path, session_folder: Path, train: Path, **data: Any) -> Run:
    """A run whose validation rows are taken out of `train`."""
    sections = {
        "model": {"model_name_or_path": str(write_model_with_tokenizer(session_folder, "llama"))},
        "data": {
            "task": "classification",
            "train": str(train),
            "val_size": NUM_HELD_OUT,
            "max_seq_length": 64,
            **data,
        },
        "train": {"output_dir": str(folder / "run")},
        "evaluate": {"max_new_tokens": 4},
        "precision": "fp32",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(sections))
    return load_run(folder / "run.yaml", []).run


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def folder_with(beside: str, folder: Path) -> Path:
    """A folder of rows whose file names tell splits: `train`, and `beside` it another."""
    write_lines(folder / f"{beside}.jsonl", OTHERS)
    return write_lines(folder / "train.jsonl", TRAIN).parent


def saved_by_datasets(folder: Path) -> Path:
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list(TRAIN)}).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("kind", ["valid", "test", "saved by datasets"])
def test_rows_are_asked_from_the_split_they_were_taken_out_of(
    session_folder: Path, tmp_path: Path, kind: str
) -> None:
    rows = tmp_path / "rows"
    train = saved_by_datasets(rows) if kind == "saved by datasets" else folder_with(kind, rows)
    run = write_divided(tmp_path, session_folder, train)

    inputs = prepare_inputs(run, RunFolder(run.train.output_dir))
    scored = score_model(run, "validation", num_ranks=1)

    texts = [row.exchange.values["text"] for row in inputs.questions["validation"].rows]
    assert len(texts) == inputs.splits["validation"].num_examples == NUM_HELD_OUT
    assert set(texts) <= {row["text"] for row in TRAIN}
    assert scored.num_rows == NUM_HELD_OUT
