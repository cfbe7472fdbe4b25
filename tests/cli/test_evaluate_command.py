"""megatune evaluate and generate on plain model folders: one device, and ranks that share the layers."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import megatune, write_model

from megatune.cli.evaluate import EvaluateOptions, evaluate_model
from megatune.cli.generate import GenerateOptions, generate_answers
from megatune.errors import ConfigError, DataError, UserError
from megatune.evaluate.decoding import Decoding

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


def test_answers_come_from_the_command_line_a_file_and_every_way_of_decoding(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("The capital\n\n2 + 2\n")
    asked = GenerateOptions(chat=False, tensor_parallel=1, as_json=True, stream=False)
    found = []
    for decoding in (
        Decoding(max_new_tokens=6),
        Decoding(max_new_tokens=6, num_beams=3),
        Decoding(max_new_tokens=6, do_sample=True, seed=3),
        Decoding(max_new_tokens=6, do_sample=True, seed=3),
    ):
        generate_answers(model, ["Once upon"], file, decoding, asked)
        found.append(json.loads(capsys.readouterr().out)["answers"])

    assert [row["prompt"] for row in found[0]] == ["Once upon", "The capital", "2 + 2"]
    assert found[2] == found[3], "the seed decides what is drawn"
    assert found[0] != found[2]


def test_a_stream_prints_what_the_whole_answer_is(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stream in (True, False):
        asked = GenerateOptions(chat=True, tensor_parallel=1, as_json=False, stream=stream)
        generate_answers(model, ["Once upon"], None, Decoding(max_new_tokens=6), asked)
    streamed, whole = capsys.readouterr().out.split("> Once upon")[1:]

    assert streamed.split() == whole.split()


def test_a_conversation_at_the_terminal_remembers_what_was_said(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins
    import sys

    turns = iter(["Hello", "And now?", "", "Hello"])

    def line(_: str) -> str:
        try:
            return next(turns)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", line)
    asked = GenerateOptions(chat=True, tensor_parallel=1, as_json=False, stream=False)

    generate_answers(model, [], None, Decoding(max_new_tokens=5), asked)

    first, _, again = capsys.readouterr().out.rstrip("\n").split("\n")
    assert first == again, "an empty line forgets"


@pytest.mark.world
def test_ranks_that_share_the_layers_write_the_answer_of_one_device(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = GenerateOptions(chat=False, tensor_parallel=1, as_json=True, stream=False)
    generate_answers(model, ["Once upon"], None, Decoding(max_new_tokens=6), asked)

    together = megatune("generate", model, "-p", "Once upon", "--max-new-tokens", 6, "--json", "--tp", 2)

    assert together.code == 0, together.text
    assert json.loads(together.out) == json.loads(capsys.readouterr().out)


def test_a_prompt_that_does_not_fit_is_refused(model: Path) -> None:
    asked = GenerateOptions(chat=False, tensor_parallel=1, as_json=True, stream=False)

    with pytest.raises(UserError, match=r"positions of this model.*--max-new-tokens"):
        generate_answers(model, ["word " * 3000], None, Decoding(max_new_tokens=6), asked)
