"""A checkpoint is whole under its name or not there, and old ones go only when newer ones stand."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from state_cases import try_to_save
from tiny_models import write_tiny_model
from worlds import Worlds

from megatune.checkpoint import prune, remove_unfinished
from megatune.checkpoint.layout import newest_whole, why_incomplete


def write_whole(checkpoints: Path, step: int) -> Path:
    folder = checkpoints / f"step-{step:08d}"
    folder.mkdir()
    (folder / "rank-00000.json").write_text("{}")
    manifest = {"schema": 1, "files": {"rank-00000.json": {"size": 2, "xxh3_128": ""}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_prune_keeps_the_newest_and_touches_nothing_foreign(tmp_path: Path) -> None:
    whole = [write_whole(tmp_path, step) for step in (5, 100, 20, 10)]
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
    whole = [write_whole(tmp_path, step) for step in (5, 10)]

    prune(tmp_path, 3)

    assert all(why_incomplete(folder) is None for folder in whole)


def test_what_a_cut_off_save_or_prune_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    whole = write_whole(tmp_path, 5)
    left = [tmp_path / name for name in ("step-00000010.tmp", "step-00000002.old.tmp")]
    foreign = [tmp_path / name for name in ("step-10.tmp", "step-mine.tmp", "notes.tmp")]
    for folder in [*left, *foreign]:
        folder.mkdir()

    assert sorted(remove_unfinished(tmp_path)) == sorted(left)

    assert not any(folder.exists() for folder in left)
    assert all(folder.is_dir() for folder in [whole, *foreign])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"this machine does not allow mounts: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def free_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def leave_free(disk: Path, num_bytes: int) -> None:
    """Fill the disk up but for `num_bytes`."""
    (disk / "filler").write_bytes(bytes(free_bytes(disk) - num_bytes))


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
