"""The checkpoints of a run, as those see them who read none."""

from pathlib import Path

from megatune.launch.checkpoints import MANIFEST, finished, folder_name, newest_saved_step, step_of


def test_a_folder_is_named_after_its_step():
    assert [step_of(Path("runs") / folder_name(step)) for step in (0, 7, 99_999_999)] == [0, 7, 99_999_999]
    assert [step_of(Path(name)) for name in ("step-1", "step-abcdefgh", "step-00000001.tmp", "best")] == [
        None
    ] * 4


def test_the_newest_is_the_one_of_most_steps_that_was_written_to_its_end(tmp_path: Path):
    assert newest_saved_step(tmp_path / "none") == -1
    assert newest_saved_step(tmp_path) == -1
    for step in (3, 20, 100):
        (tmp_path / folder_name(step)).mkdir()
    for step in (3, 20):
        (tmp_path / folder_name(step) / MANIFEST).touch()
    assert newest_saved_step(tmp_path) == 20
    assert {path.name for path in finished(tmp_path)} == {"step-00000003", "step-00000020"}


def test_a_folder_of_somebody_elses_with_a_like_name_is_none(tmp_path: Path):
    (tmp_path / "step-abcdefgh").mkdir()
    (tmp_path / "step-abcdefgh" / MANIFEST).touch()
    assert newest_saved_step(tmp_path) == -1
