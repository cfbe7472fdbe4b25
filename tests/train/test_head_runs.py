"""Whole runs with a classifier head: scores, and an export that transformers loads as the same classifier."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_task_runs import evals, write_classification, write_labelled
from tiny_runs import train, train_failing
from worlds import Worlds

pytestmark = pytest.mark.world

HEAD = {
    "train": {"max_steps": 12, "learning_rate": 3e-3, "per_device_train_batch_size": 4, "warmup_steps": 0},
    "evaluate": {"metric_for_best_model": "accuracy"},
    "checkpoint": {"export_at_end": True},
}


def write_head_run(folder: Path, session_folder: Path, data: dict[str, Any], **changes: Any) -> Path:
    run_file = write_classification(
        folder, session_folder, **{**HEAD, **changes}, data={"template": None, **data}
    )
    sections = yaml.safe_load(run_file.read_text())
    sections["model"]["head"] = "classifier"
    del sections["data"]["packing"]
    run_file.write_text(yaml.safe_dump(sections))
    return run_file


def test_a_text_classifier_learns_and_transformers_loads_it_with_the_same_answers(
    worlds: Worlds, session_folder: Path, tmp_path: Path
) -> None:
    run_file = write_head_run(
        tmp_path, session_folder, {}, train={**HEAD["train"], "class_weights": "balanced"}
    )

    assert set(worlds.run(4, train, str(run_file), [])) == {0}

    before, after = evals(tmp_path / "run", "test")
    assert after["loss"] < before["loss"] / 2
    assert after["metrics"]["accuracy"] == 1.0
    assert after["perplexity"] is None, "a class is no text"
    lines = [json.loads(line) for line in Path(after["answers"]).read_text().splitlines()]
    answers, shares = classify_with_transformers(
        tmp_path / "run" / "export", [line["prompt"] for line in lines]
    )
    assert answers == [line["answer"] for line in lines]
    assert shares == pytest.approx([line["probability"] for line in lines], abs=1e-4)


def classify_with_transformers(folder: Path, texts: list[str]) -> tuple[list[str], list[float]]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        with torch.no_grad():
            shares = model(**tokenizer(text, return_tensors="pt")).logits.softmax(dim=-1)[0]
        found.append((model.config.id2label[int(shares.argmax())], float(shares.max())))
    return [answer for answer, _ in found], [share for _, share in found]


def test_words_are_tagged_at_their_first_tokens_and_the_export_tags_them_alike(
    worlds: Worlds, session_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForTokenClassification

    rows = [
        {
            "tokens": ["see", "Anna-Maria", word, "now"],
            "tags": ["O", "B-PER", "I-PER" if row % 2 else "B-LOC", "O"],
        }
        for row, word in enumerate(["Berlin", "Bell", "Boston", "Brown"] * 4)
    ]
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"task": "ner", "train": str(path), "validation": str(path), "test": None}
    run_file = write_head_run(tmp_path, session_folder, data, evaluate={"metric_for_best_model": "f1"})

    assert set(worlds.run(2, train, str(run_file), [])) == {0}

    before, after = evals(tmp_path / "run", "validation")
    assert after["metrics"]["f1"] > before["metrics"]["f1"]
    assert after["target_tokens"] == 4 * len(rows), "one loss a word, whatever its tokens"
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "run" / "export")
    assert list(model.config.id2label.values()) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_several_labels_and_spans_run_to_their_scores(
    worlds: Worlds, session_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    rows = [{"text": f"{row} red", "labels": ["warm", "bright"][: row % 3]} for row in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(path), "validation": str(path), "test": None, "multi_label": True}
    run_file = write_head_run(
        tmp_path, session_folder, data, evaluate={"metric_for_best_model": "micro_f1"}, train={"max_steps": 1}
    )
    assert set(worlds.run(2, train, str(run_file), [])) == {0}
    assert "hamming_loss" in evals(tmp_path / "run", "validation")[-1]["metrics"]


@pytest.mark.parametrize(
    ("data", "overrides", "words"),
    [
        ({"task": "translation"}, [], "model.head = classifier is for data.task classification, ner, qa"),
        ({}, ["data.packing=true"], "reads one row at a time"),
        ({"chat": True}, [], "data.chat is for model.head = lm"),
        (
            {},
            ["model.head=lm", "train.class_weights=balanced"],
            "class_weights is for model.head = classifier",
        ),
    ],
)
def test_what_a_head_cannot_do_is_refused(
    session_folder: Path, tmp_path: Path, data: dict[str, Any], overrides: list[str], words: str
) -> None:
    from megatune.config import load_run
    from megatune.errors import ConfigError

    run_file = write_head_run(tmp_path, session_folder, data)

    with pytest.raises(ConfigError, match=words):
        load_run(run_file, overrides)


def test_a_label_that_training_never_saw_is_refused(
    worlds: Worlds, session_folder: Path, tmp_path: Path
) -> None:
    run_file = write_head_run(tmp_path, session_folder, {})
    write_labelled(tmp_path / "held-out.jsonl", 3, extra="tepid")

    (told,) = worlds.run(1, train_failing, str(run_file), ["parallel.tp_size=1"])

    assert "held-out.jsonl:4 (row 4) has the label 'tepid'" in told
