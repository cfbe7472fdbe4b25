"""The run files and rows that come with megatune, whole, on a tiny model: what `megatune fetch NAME` hands out."""

import json
from importlib import resources
from pathlib import Path

import pytest
from command_line import megatune, write_model

pytestmark = pytest.mark.world
RECIPES = resources.files("megatune.data") / "recipes"
NUM_HELD_OUT = 16


@pytest.mark.parametrize(
    ("task", "metric"), [("ner", "f1"), ("summarization", "rougeL"), ("translation", "bleu")]
)
def test_every_row_of_an_own_set_is_trained_on_or_scored(
    session_folder: Path, tmp_path: Path, task: str, metric: str
) -> None:
    rows, folder = str(RECIPES / f"{task}.jsonl"), tmp_path / "run"
    num_rows = len(Path(rows).read_text(encoding="utf-8").splitlines())
    settings = {
        "model.model_name_or_path": write_model(session_folder, "llama"),
        "data.train": rows,
        "data.validation": "null",
        "data.val_size": NUM_HELD_OUT,
        "data.max_seq_length": 512,
        "train.output_dir": folder,
        "train.num_train_epochs": 1,
        "evaluate.max_new_tokens": 4,
        "launch.nproc_per_node": 1,
    }

    done = megatune("train", RECIPES / f"{task}.yaml", *(f"{key}={value}" for key, value in settings.items()))

    assert done.code == 0, done.text
    assert num_rows >= 60
    assert f"train: {num_rows - NUM_HELD_OUT} examples" in done.text
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    before, after = (line for line in lines if line["event"] == "eval")
    for scored in (before, after):
        assert metric in scored["metrics"]
        assert len(Path(scored["answers"]).read_text(encoding="utf-8").splitlines()) == NUM_HELD_OUT
