"""The doctor looks at the disk that the optimizer is to live on."""

import json

import pytest
from command_line import megatune

from megatune.doctor.offload_disk import judge_offload_disk
from megatune.doctor.verdict import Group

GIB = 2**30
TWO_NODES = Group(world_size=4, nodes={0: "n1", 1: "n1", 2: "n2", 3: "n2"})


def facts(**changes: object) -> dict[str, object]:
    good = {"folder": "/scratch", "kind": "xfs", "writable": True, "error": None}
    return {**good, "free_bytes": 100 * GIB, "bytes_per_s": 2e9, **changes}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (facts(kind="tmpfs"), "/scratch is in memory on n2 (tmpfs)"),
        (facts(writable=False, error="no such folder"), "n2 cannot write to /scratch: no such folder"),
        (
            facts(free_bytes=GIB),
            "n2 has 1.00 GiB free in /scratch, and its states take 5.00 GiB",
        ),
    ],
)
def test_one_node_whose_disk_does_not_do_is_named(found: dict[str, object], words: str) -> None:
    finding = judge_offload_disk({0: facts(), 1: {}, 2: found, 3: {}}, TWO_NODES, 10 * GIB)

    assert finding.verdict == "fail"
    assert words in finding.message
    assert "n1" not in finding.message


def test_what_a_node_takes_and_the_slowest_disk_are_told() -> None:
    answers = {0: facts(), 1: {}, 2: facts(bytes_per_s=1e9, free_bytes=50 * GIB), 3: {}}
    finding = judge_offload_disk(answers, TWO_NODES, 10 * GIB)

    assert finding.verdict == "ok"
    assert finding.measured == {"free_bytes": 50 * GIB, "states_bytes": 5 * GIB, "bytes_per_s": 1e9}
    unknown = judge_offload_disk(answers, TWO_NODES, None)
    assert unknown.verdict == "ok"
    assert unknown.measured["states_bytes"] is None


@pytest.mark.world
def test_a_run_with_offload_to_a_disk_has_it_checked(run_file, tmp_path) -> None:
    scratch = tmp_path / "scratch"
    given = ["doctor", run_file, f'parallel.offload="nvme:{scratch}"', "--json"]
    missing = json.loads(megatune(*given).out)
    scratch.mkdir()
    there = json.loads(megatune(*given).out)

    verdicts = [
        next(rung for rung in answer["rungs"] if rung["name"] == "offload_disk")["verdict"]
        for answer in (missing, there)
    ]
    assert verdicts == ["fail", "ok"]
    assert not list(scratch.iterdir())
