"""Offload to a local disk computes what offload to host memory computes, and its checkpoints are the same."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disk_cases import step_on_a_disk_that_fails, train_save_and_go_on
from tiny_models import write_tiny_model
from worlds import Worlds

from megatune.engine.disk_states import DiskGroup
from megatune.errors import ConfigError

pytestmark = [pytest.mark.world, pytest.mark.timeout(900)]  # the first run on a machine compiles for minutes

LAYOUTS = [(2, 1), (1, 2), (2, 2)]
"""(dp, tp)"""
UNEQUAL = [(1, 2), (2, 2)]
"""Where five heads leave one tensor-parallel rank with more sub-groups than the other."""
MODEL = "gpt2-5-heads"  # its weights' pieces are no multiples of anything


@pytest.fixture(scope="module")
def model(session_folder: Path) -> str:
    return str(write_tiny_model(MODEL, session_folder))


@pytest.fixture(scope="module")
def found(
    worlds: Worlds, model: str, extensions: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[Any, dict[str, Any]]:
    root = tmp_path_factory.mktemp("offload")
    disk = root / "disk"
    disk.mkdir()
    results: dict[Any, dict[str, Any]] = {}
    for dp, tp in LAYOUTS:
        sources: list[str] = []
        for kind, offload in (
            ("host", "optimizer"),
            ("disk", f"nvme:{disk}"),
            ("host again", "optimizer"),
            ("device", "none"),
            ("host from device", "optimizer"),
        ):
            target = str(root / f"{kind}-{dp}-{tp}")
            ranks = worlds.run(
                dp * tp, train_save_and_go_on, model, tp, offload, target, sources, str(extensions)
            )
            results[kind, dp, tp] = ranks[0]
            sources = [ranks[0]["saved"]]
    for dp, tp in UNEQUAL:
        ranks = worlds.run(
            dp * tp,
            train_save_and_go_on,
            model,
            tp,
            "none",
            str(root / f"none-{dp}-{tp}"),
            [],
            str(extensions),
        )
        results["none", dp, tp] = ranks[0]
    results["left on the disk"] = {"names": [entry.name for entry in disk.iterdir()]}
    return results


@pytest.mark.parametrize(("dp", "tp"), LAYOUTS)
def test_the_steps_are_those_of_offload_to_host_memory(found: Any, dp: int, tp: int) -> None:
    host, disk = found["host", dp, tp], found["disk", dp, tp]

    assert disk["groups"] > 2
    assert (disk["first"], disk["traces"][0]) == (host["first"], host["traces"][0])
    assert host["weights"].keys() == disk["weights"].keys()
    assert [n for n, value in host["weights"].items() if not np.array_equal(value, disk["weights"][n])] == []


@pytest.mark.parametrize(("dp", "tp"), UNEQUAL)
def test_unequal_numbers_of_sub_groups_take_their_norm_together(found: Any, dp: int, tp: int) -> None:
    alone, whole = found["host", 2, 1]["first"], found["none", dp, tp]["first"]

    assert whole[0] == pytest.approx(alone[0], rel=1e-5)
    assert whole[1] == pytest.approx(alone[1], rel=1e-4)


@pytest.mark.parametrize(("dp", "tp"), LAYOUTS)
def test_a_checkpoint_goes_on_exactly_on_the_disk_and_off_it(found: Any, dp: int, tp: int) -> None:
    expected = found["host", dp, tp]["traces"][0]

    assert found["disk", dp, tp]["traces"][1] == expected, "the disk's own"
    assert found["disk", dp, tp]["traces"][2] == expected, "from host memory to the disk"
    assert found["host again", dp, tp]["traces"][2] == expected, "from the disk to host memory"


@pytest.mark.parametrize(("dp", "tp"), LAYOUTS)
def test_a_checkpoint_goes_on_without_offload_and_with_it_again(found: Any, dp: int, tp: int) -> None:
    device, host = found["device", dp, tp]["traces"], found["host from device", dp, tp]["traces"]

    # Losses and norms of two steps; torch's Adam rounds otherwise than DeepSpeed's.
    assert flat(device[2]) == pytest.approx(flat(found["host again", dp, tp]["traces"][0]), rel=1e-5)
    assert device[1] == device[0]
    assert flat(host[2]) == pytest.approx(flat(device[0]), rel=1e-5)


def flat(trace: Any) -> list[float]:
    return [value for values in trace for value in values]


@pytest.mark.parametrize(("dp", "tp"), LAYOUTS)
def test_all_states_are_in_the_files(found: Any, dp: int, tp: int) -> None:
    disk = found["disk", dp, tp]
    most = disk["state_bytes"] + 3 * disk["groups"] * mmap.PAGESIZE

    assert disk["state_bytes"] <= disk["held"].optimizer <= most
    # Gradients are stepped where they were added up: 4 bytes for each 12 of master and moments.
    for kind in ("host", "disk"):
        assert found[kind, dp, tp]["held"].gradients == found[kind, dp, tp]["state_bytes"] // 3


def test_no_file_is_left(found: Any) -> None:
    assert found["left on the disk"]["names"] == []


def test_a_disk_that_fails_ends_the_run_with_its_reason(
    worlds: Worlds, model: str, extensions: Path, tmp_path: Path
) -> None:
    (told,) = worlds.run(1, step_on_a_disk_that_fails, model, str(tmp_path), str(extensions))

    assert "could not be written (Input/output error)" in told
    assert "last checkpoint" in told


def test_states_take_no_memory_of_the_process(tmp_path: Path) -> None:
    before = _anonymous_bytes()
    group = DiskGroup(tmp_path, 4 * 2**20)
    for state in (group.weight, group.exp_avg, group.exp_avg_sq):
        state.normal_()
    total = group.exp_avg.sum()
    assert _anonymous_bytes() - before < 8 * 2**20, "48 MiB of states"
    group.write_back()

    assert torch.equal(group.exp_avg.sum(), total), "what was written back is read again"


@pytest.mark.parametrize(
    ("place", "elements", "words"),
    [
        ("missing", 10, "No such file or directory"),
        (".", 2**41, "Give a folder of a local disk with room for 12 bytes a parameter"),
    ],
)
def test_a_folder_that_cannot_hold_them_is_refused(
    tmp_path: Path, place: str, elements: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        DiskGroup(tmp_path / place, elements)


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))
