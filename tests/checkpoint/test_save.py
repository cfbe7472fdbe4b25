"""A checkpoint is whole under its name or not there, and old ones go only when newer ones stand."""

from pathlib import Path

import pytest
from small_disks import free_bytes, leave_free
from state_cases import fail_to_describe, try_to_save
from tiny_models import write_tiny_model
from worlds import Worlds
from written_checkpoints import write_checkpoint

from megatune.checkpoint import folders
from megatune.checkpoint.folders import (
    newest_whole,
    prune,
    put_in_place,
    remove_unfinished,
    set_aside_newer,
    write_hint,
)
from megatune.checkpoint.manifest import why_incomplete


def test_prune_keeps_the_newest_and_touches_nothing_foreign(tmp_path: Path) -> None:
    whole = [write_checkpoint(tmp_path, step) for step in (5, 100, 20, 10)]
    broken = tmp_path / "step-00000015"
    broken.mkdir()
    foreign = [tmp_path / name for name in ("step-5", "mine", "step-00000003-copy", "step-00000001.bak")]
    for folder in foreign:
        folder.mkdir()
        (folder / "precious").write_text("x")

    prune(tmp_path, 2)

    assert [folder.is_dir() for folder in whole] == [False, True, True, False]
    assert broken.is_dir()
    assert all((folder / "precious").read_text() == "x" for folder in foreign)
    assert not list(tmp_path.glob("*.tmp"))


def test_prune_keeps_all_when_there_are_fewer(tmp_path: Path) -> None:
    whole = [write_checkpoint(tmp_path, step) for step in (5, 10)]

    prune(tmp_path, 3)

    assert all(why_incomplete(folder) is None for folder in whole)


def test_what_a_cut_off_save_or_prune_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    whole = write_checkpoint(tmp_path, 5)
    left = [tmp_path / name for name in ("step-00000010.tmp", "step-00000002.old.tmp")]
    foreign = [tmp_path / name for name in ("step-10.tmp", "step-mine.tmp", "notes.tmp")]
    for folder in [*left, *foreign]:
        folder.mkdir()

    assert sorted(remove_unfinished(tmp_path)) == sorted(left)

    assert not any(folder.exists() for folder in left)
    assert all(folder.is_dir() for folder in [whole, *foreign])


def test_a_protected_checkpoint_outlives_newer_ones(tmp_path: Path) -> None:
    whole = [write_checkpoint(tmp_path, step) for step in (5, 10, 15, 20)]

    prune(tmp_path, 1, protected={whole[1]})

    assert [folder.is_dir() for folder in whole] == [False, True, False, True]


def test_the_only_whole_copy_comes_back_after_a_kill_between_two_renames(tmp_path: Path) -> None:
    final = write_checkpoint(tmp_path, 5)
    new = final.with_suffix(".tmp")
    new.mkdir()
    final.rename(final.with_suffix(".old.tmp"))  # the kill comes before the second rename

    assert remove_unfinished(tmp_path) == [new]

    assert newest_whole(tmp_path) == (final, [])
    assert list(tmp_path.iterdir()) == [final]


def test_a_step_saved_again_replaces_the_old_folder_which_is_deleted_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = write_checkpoint(tmp_path, 5)
    new = write_checkpoint(tmp_path / "aside", 5).rename(final.with_suffix(".tmp"))
    (tmp_path / "aside").rmdir()
    (new / "mark").write_text("new")
    stood_at_deletion = []
    delete = folders.shutil.rmtree

    def rmtree(folder: Path) -> None:
        stood_at_deletion.append((final / "mark").exists() and why_incomplete(final) is None)
        delete(folder)

    monkeypatch.setattr(folders.shutil, "rmtree", rmtree)

    put_in_place(new, final)

    assert stood_at_deletion == [True]
    assert (final / "mark").read_text() == "new"
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize(("start", "stays"), [(None, []), (10, [5, 10]), ("foreign", [5])])
def test_whole_checkpoints_a_start_would_meet_again_are_set_aside_and_kept(
    tmp_path: Path, start: int | str | None, stays: list[int]
) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for step in (5, 10, 15):
        (write_checkpoint(checkpoints, step) / "mark").write_text(str(step))
    broken = checkpoints / "step-00000020"
    broken.mkdir()
    own = checkpoints / "step-00000010"
    found = {None: None, 10: own, "foreign": tmp_path / own.name}[start]

    aside = set_aside_newer(checkpoints, found, 0 if start is None else 10)

    assert sorted(path.name for path in checkpoints.glob("step-????????")) == [
        *(f"step-{step:08d}" for step in stays),
        broken.name,
    ]
    assert [(path / "mark").read_text() for path in aside] == [
        str(step) for step in (5, 10, 15) if step not in stays
    ]
    newest = newest_whole(checkpoints)[0]
    assert newest == (checkpoints / f"step-{stays[-1]:08d}" if stays else None)


def test_a_second_abandoned_checkpoint_of_a_step_gets_a_name_of_its_own(tmp_path: Path) -> None:
    for expected in ("step-00000005.abandoned", "step-00000005.abandoned-2"):
        write_checkpoint(tmp_path, 5)
        assert set_aside_newer(tmp_path, None, 0) == [tmp_path / expected]


def test_a_hint_names_a_folder_and_goes_with_it(tmp_path: Path) -> None:
    write_hint(tmp_path / "best", write_checkpoint(tmp_path, 5))
    assert (tmp_path / "best").read_text() == "step-00000005\n"

    write_hint(tmp_path / "best", None)
    assert not (tmp_path / "best").exists()


@pytest.mark.world
def test_an_unexpected_error_of_one_rank_keeps_no_other_waiting(
    worlds: Worlds, session_folder: Path, tmp_path: Path
) -> None:
    model = str(write_tiny_model("gpt2", session_folder))

    first, *others = worlds.run(4, fail_to_describe, model, str(tmp_path))

    assert first == "TypeError: a model nobody can copy"
    assert len(set(others)) == 1
    assert others[0].startswith("CheckpointError")
    assert "rank 0: TypeError: a model nobody can copy" in others[0]
    assert newest_whole(tmp_path) == (None, [])


@pytest.mark.world
@pytest.mark.parametrize("moment", ["before", "while writing"])
def test_a_full_disk_is_an_error_on_all_ranks_and_leaves_the_older_checkpoint(
    worlds: Worlds, session_folder: Path, small_disk: Path, moment: str
) -> None:
    model = str(write_tiny_model("gpt2", session_folder))
    checkpoints = small_disk / "checkpoints"
    empty = free_bytes(small_disk)
    (first,) = {Path(path) for path in worlds.run(4, try_to_save, model, str(checkpoints), 1)}
    taken = empty - free_bytes(small_disk)
    # The check before counts the tensors; the last of the rest is what then does not fit.
    leave_free(small_disk, 100_000 if moment == "before" else taken - 60_000)

    (words,) = set(worlds.run(4, try_to_save, model, str(checkpoints), 2))

    assert words.startswith("CheckpointError")
    assert "older ones are untouched" in words
    if moment == "before":
        assert "KiB free and a checkpoint needs" in words
        assert "train.output_dir" in words, "the fix is named"
    else:
        assert "No space left on device" in words
    assert newest_whole(checkpoints) == (first, [])
    assert [folder.name for folder in checkpoints.iterdir() if not folder.name.endswith(".tmp")] == [
        first.name
    ]
    (small_disk / "filler").unlink()
    assert Path(worlds.run(4, try_to_save, model, str(checkpoints), 2)[0]).name == "step-00000002"
    assert newest_whole(checkpoints)[0] == checkpoints / "step-00000002"
