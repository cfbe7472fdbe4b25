"""Training ends when the held-out loss no longer falls, and stays ended."""

from pathlib import Path

import pytest
from tiny_runs import metrics_of, train, write_model_with_tokenizer, write_run
from worlds import Worlds

from megatune.train.stopping import Patience


@pytest.mark.world
def test_a_run_without_gain_stops_saves_and_does_not_go_on_when_started_again(
    worlds: Worlds, session_folder: Path, tmp_path: Path
) -> None:
    run_file = write_run(
        tmp_path / "run.yaml",
        write_model_with_tokenizer(session_folder),
        train={"learning_rate": 0.0, "warmup_steps": 0},  # nothing is learned, so nothing is gained
        evaluate={"eval_steps": 2, "early_stopping_patience": 2},
        parallel={"tp_size": 1},
    )
    output_dir = tmp_path / "run"

    for _ in range(2):
        assert set(worlds.run(2, train, str(run_file), [])) == {0}

        assert [entry["step"] for entry in metrics_of(output_dir, "step")] == [1, 2, 3, 4]
        assert [entry["step"] for entry in metrics_of(output_dir, "eval")] == [0, 2, 4]
        assert metrics_of(output_dir, "stop")[-1]["reason"] == "no lower loss in 2 evaluations"
    assert [folder.name for folder in (output_dir / "checkpoints").iterdir()] == ["step-00000004"]

    assert set(worlds.run(2, train, str(run_file), ["evaluate.early_stopping_patience=3"])) == {0}
    assert metrics_of(output_dir, "step")[-1]["step"] == 6, "more patience goes on"


def test_patience_counts_from_the_best_loss_and_a_nan_is_no_gain() -> None:
    patience = Patience(2)

    for loss, exhausted in [(3.0, False), (2.0, False), (2.5, False), (1.9, False), (float("nan"), False)]:
        patience = patience.after(loss)
        assert patience.exhausted is exhausted
    patience = patience.after(1.9)

    assert patience.exhausted
    assert patience.best == 1.9


@pytest.mark.parametrize("first", [float("nan"), float("inf"), None])
def test_a_first_loss_that_is_no_number_is_not_the_best_for_ever(first: float | None) -> None:
    patience = Patience(2).after(first)
    assert (patience.best, patience.without_gain) == (None, 1)

    patience = patience.after(3.0).after(2.0)

    assert (patience.best, patience.without_gain) == (2.0, 0)


def test_without_a_limit_patience_never_ends() -> None:
    patience = Patience(None)
    for _ in range(50):
        patience = patience.after(1.0)

    assert not patience.exhausted
