"""Prepared data that has changed on the disk is never trained on, whichever host sees the change."""

from pathlib import Path

import pytest
from tiny_runs import metrics_of, train, train_failing, write_model_with_tokenizer, write_run
from unchanged_data_cases import refusal_where_one_host_differs
from worlds import Worlds

pytestmark = pytest.mark.world


@pytest.fixture(scope="module")
def run_file(worlds: Worlds, session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that has finished, so that its data is prepared."""
    path = write_run(
        tmp_path_factory.mktemp("data") / "run.yaml",
        write_model_with_tokenizer(session_folder),
        train={"max_steps": 1},
        parallel={"tp_size": 1},
        checkpoint={"save_steps": 100},
    )
    assert set(worlds.run(2, train, str(path), [])) == {0}
    return path


@pytest.mark.parametrize("array", ["tokens", "is_target", "row_examples"])
@pytest.mark.parametrize("split", [0, 1])
def test_a_flipped_bit_of_either_split_ends_the_run_before_a_step_with_the_fix_named(
    worlds: Worlds, run_file: Path, array: str, split: int
) -> None:
    run = run_file.parent / "run"
    file = sorted((run / "prepared").iterdir())[split] / f"{array}.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        (words,) = set(worlds.run(2, train_failing, str(run_file), ["train.max_steps=3"]))
    finally:
        file.write_bytes(whole)

    assert words.startswith("DataError: ")
    assert f"{array}.npy changed since it was written" in words
    assert "Delete that folder and prepare again" in words
    assert str(file.parent) in words
    assert [entry["step"] for entry in metrics_of(run, "step")] == [1]


def test_a_change_that_only_the_second_host_sees_ends_all_ranks(
    worlds: Worlds, run_file: Path, tmp_path: Path
) -> None:
    sets = sorted((run_file.parent / "run" / "prepared").iterdir())

    words = worlds.run(2, refusal_where_one_host_differs, str(sets[0]), str(tmp_path / "copy"))

    assert words[0] == words[1]
    assert words[0].count("tokens.npy changed since it was written") == 1
    assert str(tmp_path / "copy") in words[0]
