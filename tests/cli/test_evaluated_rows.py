"""Which rows the scores of `megatune evaluate` are over, and what is said where that is not all of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import write_model

from megatune.cli.evaluate import EvaluateOptions, evaluate_model

LONG = {"context": "word " * 80, "question": "q?", "answers": ["word"]}
SHORT = {"question": "q?", "answers": ["word"]}


@pytest.fixture
def model(session_folder: Path) -> Path:
    return write_model(session_folder / "evaluate", "llama")


@pytest.fixture
def score(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`score(rows, *overrides, task=...) -> what --json says`, and in `score.shown` what people read."""

    def run(rows: list[dict[str, Any]], *overrides: str, task: str = "qa", as_json: bool = True) -> Any:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = EvaluateOptions(
            data=[str(path)],
            split="test",
            task=task,
            answers=None,
            tensor_parallel=1,
            num_ranks=1,
            as_json=as_json,
        )
        given = ["data.max_seq_length=64", "evaluate.max_new_tokens=2", *overrides]
        evaluate_model(model, given, asked)
        out = capsys.readouterr().out
        return json.loads(out) if as_json else out

    return run


def test_a_loss_over_fewer_rows_than_were_answered_says_so(score: Any) -> None:
    found = score([LONG, SHORT, SHORT])
    alone = score([SHORT, SHORT])

    assert (found["rows"], found["loss_rows"]) == (3, 2)
    assert found["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"])
    (notice,) = found["notices"]
    assert notice.startswith("the loss is over 2 of 3 rows (1 too long: ")
    assert "data.max_seq_length = 64" in notice
    assert (alone["rows"], alone["loss_rows"], alone["notices"]) == (2, 2, [])
    assert f"note: {notice}" in score([LONG, SHORT, SHORT], as_json=False)


def test_rows_of_a_text_that_are_dropped_are_not_counted_as_scored(score: Any) -> None:
    rows = [{"text": "word " * 80}, {"text": "short"}, {"text": "also short"}]

    found = score(rows, "data.long_rows=drop", task="text")

    assert (found["rows"], found["loss_rows"]) == (2, 2)
    assert "over 2 of 3 rows" in found["notices"][0]


def test_the_first_rows_alone_are_counted_where_only_they_are_scored(score: Any) -> None:
    found = score([{"text": f"row {n}"} for n in range(9)], "evaluate.max_eval_rows=4", task="text")

    assert (found["rows"], found["loss_rows"]) == (4, 4)
    assert "evaluate.max_eval_rows takes the first 4 prepared sequences" in found["notices"][0]
