"""A save that fails on one rank fails on all, leaves the last good one, and ends the run or does not, as asked."""

import errno
import os
from pathlib import Path

import pytest
from failing_saves import save_on_bad_disks, save_with_a_spoilt_weight, train_on_a_bad_disk
from tiny_models import write_tiny_model
from tiny_runs import metrics_of, write_model_with_tokenizer, write_run
from worlds import Worlds

from megatune.checkpoint.folders import newest_whole

pytestmark = pytest.mark.world
ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO]


@pytest.mark.parametrize("bad_rank", [0, 3])
def test_an_error_of_one_ranks_disk_reaches_all_ranks_and_leaves_nothing(
    worlds: Worlds, session_folder: Path, tmp_path: Path, bad_rank: int
) -> None:
    model = str(write_tiny_model("llama", session_folder))

    first, *others = worlds.run(4, save_on_bad_disks, model, str(tmp_path), ERRORS, bad_rank)

    assert all(words == first for words in others)
    *failed, last = first
    for number, words in zip(ERRORS, failed, strict=True):
        assert words.startswith("SaveError")
        assert f"rank {bad_rank}: " in words
        assert os.strerror(number) in words
        assert "older ones are untouched" in words
    assert last == "saved step-00000002", "the next save is not hindered by what the others left"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_never_saved(
    worlds: Worlds, session_folder: Path, tmp_path: Path, value: float
) -> None:
    model = str(write_tiny_model("llama", session_folder))

    (words,) = set(worlds.run(4, save_with_a_spoilt_weight, model, str(tmp_path), value, 2))

    assert words.startswith("CheckpointError"), "on no disk error the run may go on"
    assert "rank 2: model.norm.weight holds values that are not finite" in words
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run_file(session_folder: Path, tmp_path: Path) -> Path:
    return write_run(
        tmp_path / "run.yaml",
        write_model_with_tokenizer(session_folder),
        train={"max_steps": 6},
        parallel={"tp_size": 1},
        data={"validation": None},
        checkpoint={"save_steps": 2, "export_at_end": False},
    )


def checkpoints_of(run_file: Path) -> list[str]:
    return sorted(path.name for path in (run_file.parent / "run" / "checkpoints").iterdir())


def test_by_default_a_refused_checkpoint_ends_the_run_and_the_last_good_one_stays(
    worlds: Worlds, run_file: Path
) -> None:
    (words,) = set(worlds.run(2, train_on_a_bad_disk, str(run_file), [], errno.ENOSPC, 1, 4))

    assert words.startswith(
        "SaveError: the checkpoint could not be saved; older ones are untouched. rank 1: "
    )
    assert "No space left on device" in words
    assert checkpoints_of(run_file) == ["step-00000002"]
    assert newest_whole(run_file.parent / "run" / "checkpoints")[1] == []


def test_with_continue_the_run_goes_on_says_so_and_saves_the_next(worlds: Worlds, run_file: Path) -> None:
    overrides = ["checkpoint.on_failure=continue"]

    ended = worlds.run(2, train_on_a_bad_disk, str(run_file), overrides, errno.EDQUOT, 1, 4)

    assert set(ended) == {"no error, exit code 0"}
    assert checkpoints_of(run_file) == ["step-00000002", "step-00000006"]
    (failed,) = metrics_of(run_file.parent / "run", "save_failed")
    assert failed["step"] == 4
    assert "rank 1" in failed["reason"]
    assert [entry["step"] for entry in metrics_of(run_file.parent / "run", "save")] == [2, 6]


def test_the_last_save_of_a_run_must_succeed_even_with_continue(worlds: Worlds, run_file: Path) -> None:
    overrides = ["checkpoint.on_failure=continue"]

    (words,) = set(worlds.run(2, train_on_a_bad_disk, str(run_file), overrides, errno.EROFS, 0, 6))

    assert words.startswith("SaveError")
    assert checkpoints_of(run_file) == ["step-00000002", "step-00000004"]


def test_keep_every_marks_steps_that_no_limit_removes(worlds: Worlds, run_file: Path) -> None:
    overrides = ["checkpoint.keep_every=2", "checkpoint.save_total_limit=1", "checkpoint.save_steps=1"]

    ended = worlds.run(2, train_on_a_bad_disk, str(run_file), overrides, errno.EIO, 1, 99)

    assert set(ended) == {"no error, exit code 0"}
    assert checkpoints_of(run_file) == [f"step-{step:08d}" for step in (2, 4, 6)]
