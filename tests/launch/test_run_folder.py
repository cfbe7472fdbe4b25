import errno
import os
import subprocess
from pathlib import Path

import pytest

from megatune.errors import ConfigError
from megatune.launch.environment import environment_report, source_commit
from megatune.launch.run_folder import RunFolder


def test_a_run_folder_can_be_made_twice_and_keeps_what_is_there(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.create()
    (folder.logs / "rank-00000.log").write_text("old")
    folder.create()
    assert (folder.logs / "rank-00000.log").read_text() == "old"


def test_a_folder_that_cannot_be_made_is_the_users_error_with_its_name(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"train.output_dir = .*file/run"):
        RunFolder(tmp_path / "file" / "run").create()


def test_no_space_left_keeps_the_old_file_and_leaves_no_scrap(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write_text_atomic("plan.json", "old")

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*plan\.json"):
        folder.write_text_atomic("plan.json", "new")
    assert folder.plan.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_a_file_is_replaced_whole(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_text_atomic("run.yaml", "a: 1\n" * 1000)
    folder.write_text_atomic("run.yaml", "ä: 2\n")
    assert folder.run_file.read_text(encoding="utf-8") == "ä: 2\n"


def test_the_environment_report_tells_versions_and_no_variable(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "very-secret-value")
    report = environment_report()
    assert "very-secret-value" not in report
    for name in ("python", "package torch", "host memory", "cpu cores", "megatune commit"):
        assert f"\n{name}: " in report


def test_a_checkout_reports_its_commit_and_whether_it_is_changed(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "__init__.py").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "one")
    commit = source_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "__init__.py").write_text("changed")
    assert source_commit(tmp_path) == f"{commit}-dirty"


def test_an_installed_copy_inside_a_foreign_repository_reports_no_commit(tmp_path):
    git(tmp_path, "init", "-q")
    package = tmp_path / "venv" / "megatune"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert source_commit(package) is None


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True)
