"""A rank leaves the process group when it is done, and never after an error: that would wait for the others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import write_run

from megatune.config import load_run
from megatune.engine.world import single_world
from megatune.errors import DataError
from megatune.launch.ranks import RankInfo, discover_rank
from megatune.train import rank as rank_module


@pytest.mark.parametrize("fails", [False, True])
def test_only_a_rank_without_an_error_leaves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: bool
) -> None:
    left: list[str] = []

    def train(*_: Any) -> int:
        if fails:
            raise DataError("gone")
        return 75

    for name in (
        "prepare_launched_rank",
        "prepare_inputs",
        "write_run_folder",
        "_share_inputs",
        "find_place",
    ):
        monkeypatch.setattr(rank_module, name, lambda *_, **__: None)
    monkeypatch.setattr(rank_module, "enter", lambda *_, **__: torch.device("cpu"))
    monkeypatch.setattr(rank_module, "make_world", lambda *_, **__: single_world())
    monkeypatch.setattr(rank_module, "_train", train)
    monkeypatch.setattr(rank_module, "leave", lambda: left.append("left"))
    monkeypatch.setattr(rank_module, "share_object", lambda _: (run, {}))
    run = load_run(write_run(tmp_path / "run.yaml", tmp_path), [])

    if fails:
        with pytest.raises(DataError, match="gone"):
            rank_module.train_rank(run, rank_of_four(monkeypatch))
    else:
        assert rank_module.train_rank(run, rank_of_four(monkeypatch)) == 75

    assert left == ([] if fails else ["left"])


def rank_of_four(monkeypatch: pytest.MonkeyPatch) -> RankInfo:
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    found = discover_rank()
    assert found is not None
    return found
