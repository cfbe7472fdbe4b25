"""Which rows the scores of `megatune evaluate` are over, and what is said where that is not all of them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import megatune, write_model

from megatune.cli.evaluate import EvaluateOptions, evaluate_model
from megatune.errors import DataError
from megatune.tasks.metrics.bootstrap import bootstrap

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
    (notice,) = found["notices"]
    assert notice.startswith(
        "the loss is over 4 of 9 rows (evaluate.max_eval_rows takes the first 4 prepared"
    )


def test_rows_that_were_divided_are_all_in_the_loss_of_a_text(score: Any) -> None:
    rows = [{"text": "word " * 80}, *({"text": f"row {n}"} for n in range(3))]

    whole = score(rows, "data.long_rows=chunk", task="text")
    first = score(rows, "data.long_rows=chunk", "evaluate.max_eval_rows=2", "data.packing=false", task="text")

    assert whole["loss_rows"] > 4
    assert whole["notices"] == []
    (notice,) = first["notices"]
    assert notice.startswith(f"the loss is over 2 of {whole['loss_rows']} examples (evaluate.max_eval_rows")


def test_a_row_too_long_behind_those_that_were_asked_takes_nothing_from_the_loss(score: Any) -> None:
    limit = ["evaluate.max_eval_rows=2", "data.packing=false"]

    behind = score([SHORT, SHORT, LONG], *limit)
    before = score([SHORT, LONG, LONG], *limit)

    assert (behind["rows"], behind["loss_rows"], behind["notices"]) == (2, 2, [])
    assert (before["rows"], before["loss_rows"]) == (2, 1)
    assert before["notices"][0].startswith("the loss is over 1 of 2 rows (2 too long in the whole split: ")


def test_rows_that_are_all_too_long_for_a_loss_are_scored_by_their_answers(score: Any) -> None:
    found = score([LONG, LONG])

    assert found["metrics"].keys() == {"loss", "exact_match", "f1"}
    assert (found["metrics"]["loss"], found["rows"], found["loss_rows"]) == (None, 2, 0)
    assert "over 0 of 2 rows" in found["notices"][0]


def test_without_answers_such_rows_are_refused_in_words_of_scoring(score: Any) -> None:
    score([LONG])  # a set that was taken for its answers is not taken for its loss afterwards

    with pytest.raises(
        DataError, match=r"data\.test has nothing to take a loss on: of 1 rows .*max_seq_length"
    ):
        score([LONG], "evaluate.answers=false")


@pytest.mark.world
def test_a_run_scores_validation_rows_that_are_all_too_long_by_their_answers(
    model: Path, tmp_path: Path
) -> None:
    for name, rows in (("train", [SHORT] * 4), ("valid", [LONG] * 3)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = {
        "model": {"model_name_or_path": str(model)},
        "data": {
            "task": "qa",
            "train": str(tmp_path / "train.jsonl"),
            "validation": str(tmp_path / "valid.jsonl"),
            "max_seq_length": 64,
            "packing": False,
        },
        "train": {"output_dir": str(tmp_path / "run"), "max_steps": 1},
        "evaluate": {"max_new_tokens": 2},
        "precision": "fp32",
        "launch": {"nproc_per_node": 1},
        "checkpoint": {"export_at_end": False},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))

    done = megatune("train", tmp_path / "run.yaml")

    assert done.code == 0, done.text
    evals = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    before, after = (line for line in evals if line["event"] == "eval")
    assert (before["loss"], before["rows"], before["loss_rows"]) == (None, 3, 0)
    assert after["metrics"].keys() == {"exact_match", "f1"}
    assert done.text.count("note: validation: the loss is over 0 of 3 rows") == 1

    best = megatune(
        "train", tmp_path / "run.yaml", "evaluate.early_stopping_patience=1", "evaluate.eval_steps=1"
    )
    assert best.code == 2
    assert "metric_for_best_model = loss, but every row of data.validation is too long" in best.text


def test_the_tokenizer_of_bleu_is_a_key_of_the_run_file(score: Any) -> None:
    rows = [{"source": "We go.", "target": "我们走。"}, {"source": "He sees.", "target": "他看见了。"}]

    by_blanks = score(rows, task="translation")
    chinese = score(rows, "evaluate.bleu_tokenizer=zh", task="translation")

    assert "tok:13a" in by_blanks["details"]["signatures"]["bleu"]
    assert "2 of 2 targets have none: use evaluate.bleu_tokenizer zh" in by_blanks["notices"][0]
    assert "tok:zh" in chinese["details"]["signatures"]["bleu"]
    assert chinese["notices"] == []


def test_rows_without_anything_to_answer_and_prompts_that_are_cut_are_told(score: Any) -> None:
    blank, cut = {"question": " ", "answer": "a"}, {"question": "word " * 2000, "answer": "a"}

    notices = score([SHORT, blank, cut], "data.truncation_side=left")["notices"]

    assert "rows that hold nothing to answer are left out: 1" in notices
    assert any(
        notice.startswith("prompts without their beginning") and notice.endswith("1 of 2")
        for notice in notices
    )


def test_the_loss_of_prepared_rows_has_an_interval_and_each_row_counts_once(score: Any) -> None:
    rows = [{"text": "word " * (1 + n % 5) + str(n)} for n in range(12)]

    alone = [score([row], task="text") for row in rows]
    found = score(rows, "evaluate.per_device_eval_batch_size=5", task="text")

    targets = [one["target_tokens"] for one in alone]
    losses = [one["metrics"]["loss"] * number for one, number in zip(alone, targets, strict=True)]
    assert found["metrics"]["loss"] == pytest.approx(sum(losses) / sum(targets), rel=1e-5)
    statistics = np.array(sorted(zip(losses, targets, strict=True)))
    low, high = bootstrap(statistics, lambda sums: {"loss": sums[:, 0] / sums[:, 1]})["loss"]
    assert found["intervals"]["loss"] == pytest.approx([low, high], rel=1e-5)
    assert found["intervals"]["perplexity"] == pytest.approx([math.exp(low), math.exp(high)], rel=1e-4)
    assert low < found["metrics"]["loss"] < high
    assert "loss" not in alone[0]["intervals"]
