"""A folder that cannot hold the optimizer's states is refused before anything is loaded."""

from pathlib import Path

import pytest

from megatune.config import Run
from megatune.files import file_system_type
from megatune.launch.local_disk import disk_problems


def run_on(offload: str) -> Run:
    return Run.model_validate(
        {
            "model": {"model_name_or_path": "m"},
            "data": {"train": "t.jsonl"},
            "train": {"output_dir": "out"},
            "parallel": {"offload": offload},
        }
    )


def test_a_folder_of_a_disk_is_taken_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    assert disk_problems(run_on(f"nvme:{tmp_path}")) == []
    assert list(tmp_path.iterdir()) == []
    assert disk_problems(run_on("optimizer")) == []


def test_a_missing_folder_is_refused_and_so_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("missing", "file"):
        (problem,) = disk_problems(run_on(f"nvme:{tmp_path / name}"))
        assert problem.startswith(f"parallel.offload = nvme:{tmp_path / name}: there is no such folder here")


def test_memory_is_no_disk() -> None:
    if file_system_type(Path("/dev/shm")) != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here")
    (problem,) = disk_problems(run_on("nvme:/dev/shm"))
    assert "that is in memory (tmpfs)" in problem


def test_a_folder_that_takes_no_files_is_refused() -> None:
    (problem,) = disk_problems(run_on("nvme:/proc/self"))
    assert "no file can be made there" in problem
