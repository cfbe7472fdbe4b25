"""Whole runs of tasks with answers: scores before, on the way and after, the best model, answers on disk."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import metrics_of, train, train_failing, write_model_with_tokenizer, write_run
from worlds import Worlds

pytestmark = pytest.mark.world

COLORS = {"warm": ["red", "orange", "yellow"], "cold": ["blue", "green", "violet"]}


def write_labelled(path: Path, num_rows: int, *, extra: str | None = None) -> str:
    rows = []
    for row in range(num_rows):
        label = "warm" if row % 3 else "cold"
        word = COLORS[label][row % len(COLORS[label])]
        rows.append({"text": f"{row} {word}", "label": label})
    if extra is not None:
        rows.append({"text": "what is this", "label": extra})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_classification(folder: Path, session_folder: Path, **changes: Any) -> Path:
    data = {
        "task": "classification",
        "train": write_labelled(folder / "labelled.jsonl", 24),
        "validation": write_labelled(folder / "held-out.jsonl", 7),
        "test": write_labelled(folder / "test.jsonl", 5),
        "template": "{{ text }} is",
        "packing": False,
    }
    sections = {
        "train": {"max_steps": 6, "learning_rate": 3e-3, "per_device_train_batch_size": 4, "warmup_steps": 0},
        "evaluate": {"eval_steps": 2, "metric_for_best_model": "accuracy"},
        **changes,
    }
    data |= sections.pop("data", {})
    model = write_model_with_tokenizer(session_folder, "llama")
    return write_run(folder / "run.yaml", model, data=data, **sections)


def evals(output_dir: Path, split: str) -> list[dict[str, Any]]:
    return [entry for entry in metrics_of(output_dir, "eval") if entry["split"] == split]


def test_a_classification_is_scored_before_on_the_way_and_after_with_answers_beside_gold(
    worlds: Worlds, session_folder: Path, tmp_path: Path
) -> None:
    run_file = write_classification(tmp_path, session_folder)

    assert set(worlds.run(4, train, str(run_file), [])) == {0}

    output_dir = tmp_path / "run"
    assert [entry["step"] for entry in evals(output_dir, "validation")] == [0, 2, 4, 6]
    assert [entry["step"] for entry in evals(output_dir, "test")] == [0, 6]
    last = evals(output_dir, "test")[-1]
    lines = [json.loads(line) for line in Path(last["answers"]).read_text().splitlines()]
    assert [line["row"].rpartition("(")[2] for line in lines] == [f"row {n})" for n in range(1, 6)]
    right = sum(line["gold"] == line["answer"] for line in lines)
    assert last["metrics"]["accuracy"] == right / 5
    without = {"word_perplexity", "byte_perplexity"}
    assert set(last["intervals"]) == {*last["metrics"], "loss", "perplexity"} - without
    assert last["metrics"]["byte_perplexity"] < last["metrics"]["word_perplexity"]
    scores = json.loads((Path(last["answers"]).parent / "test.scores.json").read_text())
    assert scores["confusion"]["labels"] == ["cold", "warm"]


def test_every_layout_gives_the_same_scores_and_answers(
    worlds: Worlds, session_folder: Path, tmp_path: Path
) -> None:
    found = []
    for name, ranks, overrides in (
        ("one", 1, ["parallel.tp_size=1", "train.gradient_accumulation_steps=4"]),
        ("four", 4, ["evaluate.gather_weights=per_token", "evaluate.per_device_eval_batch_size=3"]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        run_file = write_classification(folder, session_folder)
        assert set(worlds.run(ranks, train, str(run_file), overrides)) == {0}
        found.append(metrics_of(folder / "run", "eval"))
    for one, four in zip(*found, strict=True):
        assert (one["step"], one["split"]) == (four["step"], four["split"])
        assert one["metrics"] == pytest.approx(four["metrics"], rel=1e-4)


def test_the_best_model_by_accuracy_is_scored_and_exported_and_training_stops_for_want_of_gain(
    worlds: Worlds, session_folder: Path, tmp_path: Path
) -> None:
    run_file = write_classification(
        tmp_path,
        session_folder,
        train={"max_steps": 40, "learning_rate": 3e-3, "per_device_train_batch_size": 4, "warmup_steps": 0},
        evaluate={
            "eval_steps": 2,
            "metric_for_best_model": "accuracy",
            "early_stopping_patience": 2,
            "early_stopping_min_delta": 0.01,
            "load_best_model_at_end": True,
        },
        checkpoint={"save_steps": 2, "export_at_end": True},
    )

    assert set(worlds.run(2, train, str(run_file), [])) == {0}

    output_dir = tmp_path / "run"
    values = {entry["step"]: entry["metrics"]["accuracy"] for entry in evals(output_dir, "validation")}
    stop = metrics_of(output_dir, "stop")[-1]
    assert stop["reason"] == "no higher accuracy in 2 evaluations"
    saved = {step: value for step, value in values.items() if step > 0}
    best = max(saved, key=lambda step: (saved[step], -step))
    assert evals(output_dir, "test")[-1]["step"] == best
    assert (output_dir / "best").read_text().strip() == f"step-{best:08d}"
    assert weights_of(output_dir / "export") == weights_of_checkpoint(output_dir, best, tmp_path)
    again = len(metrics_of(output_dir, "eval"))
    assert set(worlds.run(2, train, str(run_file), [])) == {0}
    assert len(metrics_of(output_dir, "eval")) == again, "a finished run has all its scores"


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def weights_of_checkpoint(output_dir: Path, step: int, folder: Path) -> bytes:
    import torch

    from megatune.checkpoint.export import export_checkpoint

    checkpoint = output_dir / "checkpoints" / f"step-{step:08d}"
    export_checkpoint(checkpoint, folder / "exported", dtype=torch.float32)
    return weights_of(folder / "exported")


ANSWERED = {"ner": "f1", "qa": "exact_match", "summarization": "rougeL", "translation": "bleu"}


def rows_of(task: str, folder: Path) -> str:
    """Rows of the set that comes with megatune, or a few questions."""
    path = folder / "rows.jsonl"
    if task == "qa":
        rows = [json.dumps({"question": f"{n}?", "answers": ["two", "three"]}) for n in range(6)]
    else:
        recipe = resources.files("megatune.data") / "recipes" / f"{task}.jsonl"
        rows = recipe.read_text(encoding="utf-8").splitlines()[:6]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("task", ANSWERED)
def test_every_task_runs_to_its_scores(
    worlds: Worlds, session_folder: Path, tmp_path: Path, task: str
) -> None:
    path, metric = rows_of(task, tmp_path), ANSWERED[task]
    run_file = write_classification(
        tmp_path,
        session_folder,
        data={
            "task": task,
            "train": path,
            "validation": path,
            "test": None,
            "template": None,
            "max_seq_length": 512,
        },
        train={"max_steps": 1, "per_device_train_batch_size": 2},
        evaluate={"max_new_tokens": 6, "max_eval_rows": 5, "metric_for_best_model": metric},
    )

    assert set(worlds.run(4, train, str(run_file), [])) == {0}

    before, after = evals(tmp_path / "run", "validation")
    for entry in (before, after):
        assert metric in entry["metrics"]
        assert len(Path(entry["answers"]).read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"test": "unseen"},
            ["test.jsonl:6 (row 6) has the label 'lukewarm', which is not among the 2 known ones"],
        ),
        (
            {"data": {"template": "{{ row.nothing }}"}},
            ["labelled.jsonl:1 (row 1) cannot be written by data.template"],
        ),
        (
            {"metric": "f2"},
            ["metric_for_best_model = f2 is no score of data.task classification", "macro_f1"],
        ),
        ({"data": {"template": "{{ body }}"}}, ["data.template reads body", "It has labels", "text"]),
        (
            {"data": {"train": {"path": "x", "columns": {"body": "b"}}}},
            ["columns maps body", "it reads label, labels"],
        ),
    ],
)
def test_what_a_task_cannot_use_is_refused_with_the_row_before_anything_is_trained(
    worlds: Worlds, session_folder: Path, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    run_file = write_classification(tmp_path, session_folder, data=dict(changes.get("data", {})))
    if "test" in changes:
        write_labelled(tmp_path / "test.jsonl", 5, extra="lukewarm")
    if isinstance(changes.get("data", {}).get("train"), dict):
        run_file.write_text(run_file.read_text().replace("path: x", f"path: {tmp_path / 'labelled.jsonl'}"))

    metric = changes.get("metric", "eval_accuracy")  # as transformers calls it
    overrides = ["parallel.tp_size=1", f"evaluate.metric_for_best_model={metric}"]

    (told,) = worlds.run(1, train_failing, str(run_file), overrides)

    for word in words:
        assert word in told
