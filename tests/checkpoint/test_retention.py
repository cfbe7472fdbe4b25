"""Which checkpoints a limit removes: never the best, never those kept for ever, never what no save wrote."""

import shutil
from pathlib import Path

import pytest
from written_checkpoints import write_checkpoint

from megatune.checkpoint import folders
from megatune.checkpoint.folders import best_of, prune, remove_unfinished


def present(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.iterdir())


def test_every_mth_step_is_kept_for_ever_and_counts_as_one_of_the_newest(tmp_path: Path) -> None:
    for step in range(1, 11):
        write_checkpoint(tmp_path, step, kept_for_ever=step % 4 == 0)
        prune(tmp_path, 2)

    assert present(tmp_path) == [f"step-{step:08d}" for step in (4, 8, 9, 10)]


def test_the_best_is_the_one_that_the_newest_checkpoint_names(tmp_path: Path) -> None:
    folders = [write_checkpoint(tmp_path, step, best_step=10) for step in (10, 20, 30)]

    assert best_of(folders[::-1]) == folders[0]
    assert best_of(folders[:0:-1]) is None
    assert best_of([]) is None


def test_where_the_newest_cannot_be_read_an_older_one_says_which_is_the_best(tmp_path: Path) -> None:
    folders = [write_checkpoint(tmp_path, step, best_step=10) for step in (10, 20, 30)]
    (folders[2] / "training.json").write_text("{")

    assert best_of(folders[::-1]) == folders[0]


def test_a_prune_beside_this_one_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (10, 20, 30, 40):
        write_checkpoint(tmp_path, step)
    whole = folders._whole(tmp_path)
    monkeypatch.setattr(folders, "_whole", lambda _: whole)
    shutil.rmtree(tmp_path / "step-00000010")
    rename = Path.rename

    def renamed_by_another(path: Path, target: Path) -> Path:
        if path.name == "step-00000020":
            shutil.rmtree(path)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed_by_another)

    assert [folder.name for folder in prune(tmp_path, 1)] == ["step-00000030"]


def test_a_damaged_one_stays_and_is_none_of_the_newest(tmp_path: Path) -> None:
    folders = [write_checkpoint(tmp_path, step) for step in (10, 20, 30)]

    assert prune(tmp_path, 1, damaged={folders[2]}) == [folders[0]]
    assert present(tmp_path) == [folders[1].name, folders[2].name]


def plant_a_copy(checkpoints: Path) -> Path:
    return Path(shutil.copytree(checkpoints / "step-00000020", checkpoints / "step-00000003"))


def plant_a_link(checkpoints: Path) -> Path:
    elsewhere = checkpoints.parent / "elsewhere"
    write_checkpoint(elsewhere, 3)
    (checkpoints / "step-00000003").symlink_to(elsewhere / "step-00000003")
    return checkpoints / "step-00000003"


def plant_notes(checkpoints: Path) -> Path:
    folder = write_checkpoint(checkpoints, 3)
    (folder / "notes.txt").write_text("precious")
    return folder


def plant_notes_beside_the_tokenizer(checkpoints: Path) -> Path:
    folder = write_checkpoint(checkpoints, 3)
    (folder / "model" / "notes.txt").write_text("precious")
    return folder


@pytest.mark.parametrize("plant", [plant_a_copy, plant_a_link, plant_notes, plant_notes_beside_the_tokenizer])
def test_what_no_save_has_written_is_left_alone(tmp_path: Path, plant: object) -> None:
    checkpoints = tmp_path / "checkpoints"
    for step in (10, 20, 30):
        write_checkpoint(checkpoints, step)
    planted = plant(checkpoints)  # type: ignore[operator]
    before = sorted(path.name for path in planted.rglob("*"))

    removed = prune(checkpoints, 1)

    assert [folder.name for folder in removed] == ["step-00000010", "step-00000020"]
    assert sorted(path.name for path in planted.rglob("*")) == before
    assert (planted / "manifest.json").is_file()


def test_a_link_with_the_name_of_an_unfinished_save_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").touch()
    link = tmp_path / "step-00000010.tmp"
    link.symlink_to(target)

    assert remove_unfinished(tmp_path) == []

    assert link.is_symlink()
    assert (target / "precious").exists()
