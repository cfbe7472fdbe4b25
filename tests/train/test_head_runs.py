"""Whole runs with a classifier head: scores, and an export that transformers loads as the same classifier."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from head_run_cases import head_scores
from test_task_runs import evals, write_classification, write_labelled
from tiny_runs import train, train_failing
from worlds import Worlds

from megatune.cli.evaluate import EvaluateOptions, evaluate_model
from megatune.config import load_run
from megatune.train.score import score_model

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
    worlds: Worlds, session_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    found = scores_of(tmp_path / "run", "test", capsys)
    assert found["accuracy"] == 1.0
    assert found["loss"] == pytest.approx(after["loss"], rel=1e-4), "weighed by the training rows here, too"


def scores_of(run: Path, split: str, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """What `megatune evaluate` says of a run."""
    capsys.readouterr()
    asked = EvaluateOptions(
        data=[], split=split, task=None, answers=None, tensor_parallel=1, num_ranks=1, as_json=True
    )
    evaluate_model(run, [], asked)
    found: dict[str, float] = json.loads(capsys.readouterr().out)["metrics"]
    return found


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


QUESTIONS = [
    {
        "context": f"In {place} it was {degrees} degrees on day {day}.",
        "question": ["Where was it?", "How warm was it?"][day % 2],
        "answer": [place, f"{degrees}"][day % 2],
    }
    for day, (place, degrees) in enumerate(zip(["Berlin", "Bonn", "Boston"] * 8, range(11, 35), strict=True))
]


def test_spans_are_learned_on_four_ranks_and_transformers_finds_them_alike(
    worlds: Worlds, session_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    data = {"task": "qa", "train": str(path), "validation": str(path), "test": None, "max_seq_length": 96}
    learned = {**HEAD["train"], "max_steps": 40, "learning_rate": 1e-2}
    run_file = write_head_run(
        tmp_path, session_folder, data, train=learned, evaluate={"metric_for_best_model": "f1"}
    )

    assert set(worlds.run(4, train, str(run_file), [])) == {0}

    before, after = evals(tmp_path / "run", "validation")
    assert after["metrics"]["f1"] > before["metrics"]["f1"]
    assert after["loss"] < before["loss"] / 2
    assert after["target_tokens"] == len(QUESTIONS), "one loss a span"
    lines = [json.loads(line) for line in Path(after["answers"]).read_text().splitlines()]
    folder = tmp_path / "run" / "export"
    scores, answers, ids = find_spans_with_transformers(folder, [line["prompt"] for line in lines])
    assert answers == [line["answer"] for line in lines]
    head = {"kind": "qa", "labels": ["start", "end"], "pad_id": 0}
    for together in worlds.run(4, head_scores, str(folder), head, ids, 2):
        for ours, theirs in zip(together, scores, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    found = scores_of(tmp_path / "run", "validation", capsys)
    assert found["exact_match"] == after["metrics"]["exact_match"]
    assert found["f1"] == pytest.approx(after["metrics"]["f1"])
    assert found["loss"] == pytest.approx(after["loss"], rel=1e-4)


def find_spans_with_transformers(
    folder: Path, texts: list[str]
) -> tuple[list[torch.Tensor], list[str], list[list[int]]]:
    """Scores of the tokens, the likeliest span of the second line as the SQuAD scripts find it, and the tokens."""
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    model = AutoModelForQuestionAnswering.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores, answers, tokens = [], [], []
    for text in texts:
        encoded = tokenizer(text, return_offsets_mapping=True)
        offsets, ids = encoded["offset_mapping"], encoded["input_ids"]
        with torch.no_grad():
            output = model(input_ids=torch.tensor([ids]))
        scores.append(torch.stack([output.start_logits[0], output.end_logits[0]], dim=-1))
        inside = [at for at, (_, stop) in enumerate(offsets) if stop > text.index("\n") + 1]
        first, last = max(
            ((start, end) for start in inside for end in inside if start <= end < start + 30),
            key=lambda span: float(output.start_logits[0, span[0]] + output.end_logits[0, span[1]]),
        )
        answers.append(text[offsets[first][0] : offsets[last][1]].strip())
        tokens.append(ids)
    return scores, answers, tokens


TAGGED = [{"tokens": ["see", "Anna-Maria", "now"], "tags": ["O", "B-PER", "O"]} for _ in range(5)]


@pytest.mark.parametrize(
    ("task", "head", "changes"),
    [
        ("classification", "lm", {"template": "{{ text }} is"}),
        ("classification", "lm", {"template": "{{ text }} is", "packing": True}),
        ("classification", "lm", {"template": "{{ text }} is", "completion_only_loss": False}),
        ("classification", "classifier", {}),
        ("ner", "classifier", {}),
        ("qa", "classifier", {"max_seq_length": 96}),
        ("classification", "classifier", {"max_seq_length": 4, "truncation_side": "left"}),
        ("ner", "classifier", {"max_seq_length": 6, "truncation_side": "left"}),
        ("qa", "classifier", {"max_seq_length": 34, "truncation_side": "left"}),
    ],
)
def test_the_loss_that_comes_with_answers_is_the_loss_of_the_prepared_rows(
    session_folder: Path, tmp_path: Path, task: str, head: str, changes: dict[str, Any]
) -> None:
    rows = {"ner": TAGGED, "qa": QUESTIONS}.get(task)
    held_out = tmp_path / "held-out.jsonl"
    by_loss = {"metric_for_best_model": "loss"}
    run_file = write_head_run(tmp_path, session_folder, {"task": task, **changes}, evaluate=by_loss)
    if rows is not None:
        held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))

    with_answers, alone = (
        score_model(
            load_run(run_file, [f"model.head={head}", f"data.train={held_out}", *overrides]).run,
            "validation",
            num_ranks=1,
        )
        for overrides in ([], ["evaluate.answers=false"])
    )

    assert with_answers.answers and not alone.answers
    assert with_answers.target_tokens == alone.target_tokens > 0
    assert with_answers.loss == pytest.approx(alone.loss, rel=1e-5)
    assert {name: with_answers.metrics[name] for name in alone.metrics} == pytest.approx(
        alone.metrics, rel=1e-4
    )
    assert len(alone.metrics) == (3 if head == "lm" else 0)


def test_several_labels_run_to_their_scores(worlds: Worlds, session_folder: Path, tmp_path: Path) -> None:
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
