"""Compiling ops on a node before its ranks start."""

import os

import pytest

from megatune.errors import LaunchError
from megatune.launch.slurm.prebuild import prebuild


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("name", ["megatune-0", "megatune-0/torch_extensions"])
def test_a_folder_that_another_user_made_is_not_built_in(tmp_path, monkeypatch, name):
    folder = tmp_path / "megatune-0/torch_extensions"
    folder.mkdir(parents=True)
    os.chown(tmp_path / name, 12345, 12345)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))

    with pytest.raises(LaunchError, match="belongs to another user"):
        prebuild(["cpu_adam"])

    assert list(folder.iterdir()) == []
