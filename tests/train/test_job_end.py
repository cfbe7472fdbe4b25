"""A run saves and stops before its job ends, also in the middle of an evaluation, and goes on later."""

import json
from pathlib import Path
from typing import Any

import pytest
from job_end_cases import (
    train_until_five_seconds_are_left,
    train_with_seconds_left,
    train_with_signal_in_evaluation,
)
from tiny_runs import metrics_of, train, write_model_with_tokenizer, write_rows, write_run
from worlds import Worlds

pytestmark = pytest.mark.world


@pytest.fixture
def run_file(session_folder: Path, tmp_path: Path) -> Path:
    """Twenty evaluation batches on each of two ranks."""
    held_out = write_rows(tmp_path / "held-out.jsonl", 40, seed=5)
    return write_run(
        tmp_path / "run.yaml",
        write_model_with_tokenizer(session_folder),
        data={"packing": False, "validation": str(held_out)},
        evaluate={"eval_steps": 2},
        parallel={"tp_size": 1},
        slurm={"signal_delay_s": 1},
    )


def checkpoints(run_file: Path) -> list[str]:
    return sorted(folder.name for folder in (run_file.parent / "run/checkpoints").iterdir())


def steps_with(output_dir: Path, event: str) -> list[Any]:
    return [entry["step"] for entry in metrics_of(output_dir, event)]


def test_a_run_saves_before_its_job_ends_and_the_next_job_goes_on(worlds: Worlds, run_file: Path) -> None:
    output_dir = run_file.parent / "run"
    endless = ["train.num_train_epochs=100000", "evaluate.eval_steps=100000"]

    codes = worlds.run(2, train_until_five_seconds_are_left, str(run_file), endless, 12)

    assert codes == [75, 75]
    stop = metrics_of(output_dir, "stop")[-1]
    assert stop["reason"].startswith("the job ends in 5 s; no save was measured yet, and 1 s are kept")
    assert stop["step"] > 1
    assert stop["exit_code"] == 75
    assert checkpoints(run_file) == [f"step-{stop['step']:08d}"]
    start = metrics_of(output_dir, "run")[-1]
    assert (start["num_nodes"], start["restart_count"], start["job_id"]) == (1, 0, None)

    assert worlds.run(2, train, str(run_file), [*endless, f"train.max_steps={stop['step'] + 1}"]) == [0, 0]
    assert steps_with(output_dir, "resume") == [stop["step"]]
    assert steps_with(output_dir, "step") == list(range(1, stop["step"] + 2))


def test_a_signal_ends_an_evaluation_between_two_batches(worlds: Worlds, run_file: Path) -> None:
    output_dir = run_file.parent / "run"

    codes = worlds.run(2, train_with_signal_in_evaluation, str(run_file), ["train.max_steps=3"], 1, 2)

    assert codes == [75, 75]
    assert metrics_of(output_dir, "stop")[-1]["reason"] == "asked to stop by a signal to another rank"
    assert steps_with(output_dir, "eval") == [0], "the evaluation at step 2 was given up"
    assert checkpoints(run_file) == ["step-00000002"]

    assert worlds.run(2, train, str(run_file), ["train.max_steps=3"]) == [0, 0]
    assert steps_with(output_dir, "eval") == [0, 2, 3], "the next start makes up for it"


def test_a_stop_before_the_first_step_leaves_nothing_to_save(worlds: Worlds, run_file: Path) -> None:
    codes = worlds.run(2, train_with_signal_in_evaluation, str(run_file), ["train.max_steps=3"], 0, 1)

    assert codes == [75, 75]
    assert checkpoints(run_file) == []
    assert (
        "SIGUSR2 (the time limit of the job is near)"
        in metrics_of(run_file.parent / "run", "stop")[-1]["reason"]
    )

    assert worlds.run(2, train, str(run_file), ["train.max_steps=3"]) == [0, 0]


def test_an_evaluation_that_would_not_fit_is_not_begun(worlds: Worlds, run_file: Path) -> None:
    output_dir = run_file.parent / "run"
    assert worlds.run(2, train, str(run_file), ["train.max_steps=3"]) == [0, 0]
    slow = [
        json.dumps({**entry, "seconds": 10_000.0} if entry["event"] == "eval" else entry)
        for entry in map(json.loads, (output_dir / "metrics.jsonl").read_text().splitlines())
    ]
    (output_dir / "metrics.jsonl").write_text("\n".join(slow) + "\n")

    codes = worlds.run(2, train_with_seconds_left, str(run_file), ["train.max_steps=5"], 5000)

    assert codes == [75, 75]
    assert "evaluating takes 10000 s, saving takes" in metrics_of(output_dir, "stop")[-1]["reason"]
    assert steps_with(output_dir, "eval") == [0, 2, 3]
    assert checkpoints(run_file)[-1] == "step-00000004"
