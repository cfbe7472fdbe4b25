"""megatune evaluate on plain model folders and runs: one device, and ranks that share the layers."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import megatune, write_model

from megatune.cli.evaluate import EvaluateOptions, evaluate_model
from megatune.config import load_run
from megatune.errors import ConfigError, DataError, UserError
from megatune.launch.run_folder import RunFolder
from megatune.report.metrics import MetricsWriter
from megatune.report.records import RunRecord
from megatune.train.score import score_model

ROWS = [{"question": f"What is {n}?", "answers": [f"{n}", "a number"]} for n in range(5)]


@pytest.fixture
def model(session_folder: Path) -> Path:
    return write_model(session_folder / "evaluate", "llama")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def options(rows: Path | None, **changes: Any) -> EvaluateOptions:
    defaults: dict[str, Any] = {
        "data": [str(rows)] if rows else [],
        "split": "test",
        "task": "qa",
        "answers": None,
        "tensor_parallel": 1,
        "num_ranks": 1,
        "as_json": True,
    }
    return EvaluateOptions(**{**defaults, **changes})


@pytest.mark.world
def test_a_model_folder_is_scored_alike_on_one_device_and_by_ranks_that_share_layers_and_rows(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.jsonl"
    evaluate_model(model, ["evaluate.max_new_tokens=8"], options(rows, answers=answers))
    alone = json.loads(capsys.readouterr().out)

    done = megatune(
        "evaluate", model, "--data", rows, "--task", "qa", "--tp", 2, "--nproc", 4, "--json",
        "evaluate.max_new_tokens=8",
    )  # fmt: skip

    assert done.code == 0, done.text
    together = json.loads(done.out)
    assert (alone["schema"], alone["split"], alone["rows"]) == (1, "test", 5)
    assert {"loss", "perplexity", "byte_perplexity", "exact_match", "f1"} <= set(alone["metrics"])
    assert together["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["gold"] for line in lines] == [row["answers"] for row in ROWS]


def test_what_cannot_be_scored_is_refused_with_the_fix(model: Path, rows: Path, tmp_path: Path) -> None:
    cases: list[tuple[EvaluateOptions, list[str], type[UserError], str]] = [
        (options(None), [], ConfigError, "give rows with --data"),
        (options(rows, split="dev"), [], ConfigError, "use one of validation, test"),
        (options(rows, tensor_parallel=2, num_ranks=3), [], ConfigError, "does not divide"),
        (options(rows, task="ner"), [], DataError, "rows.jsonl:1 .row 1. lacks a column"),
        (options(rows, task="poetry"), [], ConfigError, "data.task"),
        (options(tmp_path / "none.jsonl"), [], DataError, "none.jsonl does not exist"),
        (options(rows), ["evaluate.max_new_tokens=5000"], ConfigError, "leaves no room"),
    ]
    for asked, overrides, kind, words in cases:
        with pytest.raises(kind, match=words):
            evaluate_model(model, overrides, asked)


def run_of(tmp_path: Path, model: Path, **changes: Any) -> Path:
    """A trained run on short questions, with an export; gives its folder."""
    rows = [{"question": f"What is {n} and {n % 5}?", "answers": [f"{n % 3}"]} for n in range(40)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections: dict[str, Any] = {
        "model": {"model_name_or_path": str(model)},
        "data": {
            "task": "qa",
            "train": str(tmp_path / "asked.jsonl"),
            "max_seq_length": 64,
            "packing": False,
        },
        "train": {"output_dir": str(tmp_path / "run"), "max_steps": 2, "learning_rate": 1e-3},
        "evaluate": {"max_new_tokens": 4},
        "precision": "fp32",
        "launch": {"nproc_per_node": 1},
    }
    for key, value in changes.items():
        sections[key] = {**sections.get(key, {}), **value}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    done = megatune("train", tmp_path / "run.yaml")
    assert done.code == 0, done.text
    return tmp_path / "run"


def evals_of(run: Path, split: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == "eval" and line["split"] == split]


@pytest.mark.world
def test_a_run_without_an_export_answers_by_its_newest_checkpoint(model: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, model)
    ask = ("generate", run, "-p", "What is 3 and 3?", "--max-new-tokens", 6, "--json")
    by_export = megatune(*ask)
    shutil.rmtree(run / "export")

    by_checkpoint = megatune(*ask)

    assert by_checkpoint.code == 0, by_checkpoint.text
    assert json.loads(by_checkpoint.out)["answers"] == json.loads(by_export.out)["answers"]
    assert [path.name for path in run.glob("export*")] == ["exported"], "what was exported for this is gone"


@pytest.mark.world
def test_the_validation_rows_that_a_run_took_out_of_its_own_are_scored_as_at_its_end(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, model, data={"val_size": 0.2})
    told = evals_of(run, "validation")[-1]
    asked = options(None, split="validation", task=None, answers=tmp_path / "answers.jsonl")

    evaluate_model(run, [], asked)

    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 8
    assert found["metrics"]["loss"] == pytest.approx(told["loss"], rel=1e-5)
    assert found["metrics"]["exact_match"] == told["metrics"]["exact_match"]
    answered = (tmp_path / "answers.jsonl").read_text()
    assert answered == Path(told["answers"]).read_text(), "the same rows, with the same answers"
    assert len(list((run / "prepared").iterdir())) == 2, "the run's own sets were used"

    with pytest.raises(DataError, match="ask for --split validation"):
        evaluate_model(run, [], options(None, task=None))


@pytest.mark.world
def test_rows_that_are_given_take_the_place_of_those_a_run_took_out_of_its_own(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # With characters that JSON writes in another way than YAML.
    folder = tmp_path / 'a "run" \U0001f600'
    folder.mkdir()
    run = run_of(folder, model, data={"val_size": 4})
    given = shutil.copy(rows, folder)

    evaluate_model(run, [], options(given, split="validation", task=None))

    assert json.loads(capsys.readouterr().out)["rows"] == len(ROWS)


@pytest.mark.world
def test_a_run_with_tokens_of_its_own_is_scored_with_what_it_has_trained(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"tokenizer": {"add_tokens": ["<sum>"]}, "train": {"learning_rate": 1e-1}}
    run = run_of(tmp_path, model, data={"val_size": 0.2}, **changes)
    before, after = evals_of(run, "validation")

    evaluate_model(run, [], options(None, split="validation", task=None))

    found = json.loads(capsys.readouterr().out)["metrics"]["loss"]
    assert found == pytest.approx(after["loss"], rel=1e-5)
    assert found != pytest.approx(before["loss"], rel=1e-2)


LABELLED = [{"text": f"text {n}", "label": "abcd"[n % 4]} for n in range(40)]
FEWER = [row for row in LABELLED if row["label"] in "bd"]


def classes_of(folder: Path, model: Path, train: Any, validation: Any, head: str = "lm") -> Path:
    """The run file of a classification."""
    path = folder / "run.yaml"
    sections = {
        "model": {"model_name_or_path": str(model), "head": head},
        "data": {"task": "classification", "train": train, "validation": validation, "max_seq_length": 64},
        "train": {"output_dir": str(folder / "run"), "max_steps": 1},
        "precision": "fp32",
        "launch": {"nproc_per_node": 1},
    }
    path.write_text(yaml.safe_dump(sections))
    return path


def write_classes(folder: Path) -> Path:
    folder.mkdir()
    for name, rows in (("train", LABELLED), ("valid", FEWER)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("written", ["both splits in a folder", "mixtures", "other rows of a file"])
def test_the_labels_are_those_of_the_training_rows_however_rows_are_written(
    model: Path, tmp_path: Path, written: str
) -> None:
    folder = write_classes(tmp_path / "rows")
    train, valid = (str(folder / f"{name}.jsonl") for name in ("train", "valid"))
    sources: dict[str, tuple[Any, Any]] = {
        "both splits in a folder": (str(folder), str(folder)),
        "mixtures": ([{"path": train}, {"path": valid}], [{"path": valid}, {"path": valid}]),
        "other rows of a file": (train, {"path": train, "max_samples": 2}),
    }
    run = load_run(classes_of(tmp_path, model, *sources[written]), []).run

    found = score_model(run, "validation", num_ranks=1)

    assert found.details["confusion"]["labels"] == list("abcd")


@pytest.mark.world
def test_a_classifier_of_more_labels_than_the_scored_rows_have_is_scored(model: Path, tmp_path: Path) -> None:
    folder = str(write_classes(tmp_path / "rows"))
    trained = megatune("train", classes_of(tmp_path, model, folder, folder, "classifier"))
    assert trained.code == 0, trained.text

    ask = ("evaluate", tmp_path / "run", "--split", "validation", "--json")
    alone, together = megatune(*ask), megatune(*ask, "--tp", 2, "--nproc", 2)

    told = evals_of(tmp_path / "run", "validation")[-1]
    for done in (alone, together):
        assert done.code == 0, done.text
        assert json.loads(done.out)["metrics"] == pytest.approx(
            {"loss": told["loss"], **told["metrics"]}, rel=1e-4
        )
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes((Path(folder) / "valid.jsonl").read_bytes())
    shutil.rmtree(folder)  # the head knows its classes
    later = megatune("evaluate", tmp_path / "run", "--data", rows, "--json")
    assert later.code == 0, later.text
    assert json.loads(later.out)["metrics"] == json.loads(alone.out)["metrics"]


def test_a_run_knows_its_labels_when_the_training_rows_are_gone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_classes(tmp_path / "rows")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    written = classes_of(tmp_path, model, str(rows / "train.jsonl"), str(rows / "valid.jsonl"))
    folder.run_file.write_bytes(written.read_bytes())
    shutil.copytree(model, folder.export)
    with MetricsWriter(folder.metrics) as metrics:
        metrics.write(RunRecord(model=str(model), labels=("d", "c", "b", "a")))
    (rows / "train.jsonl").unlink()

    evaluate_model(folder.path, [], options(None, split="validation", task=None))

    assert json.loads(capsys.readouterr().out)["details"]["confusion"]["labels"] == ["d", "c", "b", "a"]


def test_answers_never_take_the_place_of_rows_links_or_pipes(model: Path, rows: Path, tmp_path: Path) -> None:
    before = rows.read_bytes()
    link, target, pipe = tmp_path / "link.jsonl", tmp_path / "target.jsonl", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    os.mkfifo(pipe)
    for refused, words in ((rows, "is a file of rows"), (tmp_path, "is a folder")):
        with pytest.raises(ConfigError, match=words):
            evaluate_model(model, [], options(rows, answers=refused))
    (tmp_path / "all").mkdir()
    inside = Path(shutil.copy(rows, tmp_path / "all"))
    for named in (str(tmp_path / "all"), str(tmp_path / "all/*.jsonl")):
        with pytest.raises(ConfigError, match="is a file of rows"):
            evaluate_model(model, [], options(None, data=[named], answers=inside))
    assert rows.read_bytes() == before

    evaluate_model(model, [], options(rows, answers=link))
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    evaluate_model(model, [], options(rows, answers=pipe))

    assert link.is_symlink() and pipe.is_fifo()
    assert len(target.read_text().splitlines()) == len(ROWS)
    assert reader.communicate()[0].decode() == target.read_text()


def test_the_labels_of_a_bare_model_are_those_of_the_rows_given(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_classes(tmp_path / "rows")

    evaluate_model(model, [], options(folder, split="validation", task="classification"))

    assert json.loads(capsys.readouterr().out)["details"]["confusion"]["labels"] == ["b", "d"]
