"""Rows that data.val_size takes out of the training rows: those that have a loss are those that are asked."""

import json
import shutil
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


def write_divided(folder: Path, model: Path, train: Path, **data: Any) -> Run:
    """A run whose validation rows are taken out of `train`."""
    sections = {
        "model": {"model_name_or_path": str(model)},
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


@pytest.fixture
def model(session_folder: Path) -> Path:
    return write_model_with_tokenizer(session_folder, "llama")


@pytest.mark.parametrize("kind", ["valid", "test", "saved by datasets"])
def test_rows_are_asked_from_the_split_they_were_taken_out_of(model: Path, tmp_path: Path, kind: str) -> None:
    rows = tmp_path / "rows"
    train = saved_by_datasets(rows) if kind == "saved by datasets" else folder_with(kind, rows)
    run = write_divided(tmp_path, model, train)

    inputs = prepare_inputs(run, RunFolder(run.train.output_dir))
    scored = score_model(run, "validation", num_ranks=1)

    texts = [row.exchange.values["text"] for row in inputs.questions["validation"].rows]
    assert len(texts) == inputs.splits["validation"].num_examples == NUM_HELD_OUT
    assert set(texts) <= {row["text"] for row in TRAIN}
    assert scored.num_rows == NUM_HELD_OUT


EVER_ANOTHER_CHAT = (
    "{{ strftime_now('%f') }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""A template with a clock that never shows the same twice."""


@pytest.mark.parametrize("is_chat", [False, True])
def test_rows_are_found_again_whatever_is_learned_and_whenever_they_are_written(
    model: Path, tmp_path: Path, is_chat: bool
) -> None:
    own = Path(shutil.copytree(model, tmp_path / "model"))
    (own / "chat_template.jinja").write_text(EVER_ANOTHER_CHAT)
    rows = write_lines(tmp_path / "rows.jsonl", [*TRAIN, *OTHERS])
    run = write_divided(tmp_path, own, rows, chat=is_chat, completion_only_loss=False, packing=False)

    inputs = prepare_inputs(run, RunFolder(run.train.output_dir))

    assert len(inputs.questions["validation"].rows) == inputs.splits["validation"].num_examples
