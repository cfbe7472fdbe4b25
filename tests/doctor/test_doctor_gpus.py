"""What nvidia-smi prints, planted: full, broken, slowed down and silent GPUs."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatune.doctor.gpus import judge_gpus, measure_gpus, parse_query
from megatune.doctor.verdict import Group

STATE = ("index", "uuid", "name", "memory.total", "memory.used")
WHO = Group(world_size=3, nodes={0: "n1", 1: "n2", 2: "n3"})
FIRST: Any = SimpleNamespace(is_first_of_node=True)
# Somebody else is at work on the second GPU.
TWO_GPUS = """
case "$1" in
  -L) echo "GPU 0: NVIDIA A100"; echo "GPU 1: NVIDIA A100" ;;
  *memory.used*) echo "0, GPU-aa11, NVIDIA A100, 40960, 4"; echo "1, GPU-bb22, NVIDIA A100, 40960, 30000" ;;
  *) exit 2 ;;
esac
"""


def gpu(index: int, used_mib: int = 4, **more: str | None) -> dict[str, str | None]:
    (row,) = parse_query(f"{index}, GPU-1, NVIDIA H100 80GB HBM3, 81559, {used_mib}\n", STATE)
    return {**row, **more}


def nodes(*gpus: list[dict[str, str | None]]) -> dict[int, dict[str, object]]:
    return {rank: {"usable": len(found), "gpus": found} for rank, found in enumerate(gpus)}


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a stand-in for nvidia-smi that runs the given lines of shell."""

    def install(lines: str) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{lines}")
        tool.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


@pytest.mark.parametrize("group", ["throttle", "event"])
def test_a_driver_that_knows_one_name_of_slowdowns_is_asked_by_it(nvidia_smi, group):
    answer = f"*clocks_{group}_reasons*) echo '1, Not Active, Active, Not Active, Not Active' ;;"
    nvidia_smi(TWO_GPUS.replace("*) exit 2", f"{answer}\n  *) exit 2"))

    finding = judge_gpus({0: measure_gpus(FIRST)}, WHO)

    assert "GPU 1 of n1 is slowed down: hw_thermal_slowdown" in finding.message


@pytest.mark.parametrize(
    ("visible", "indices", "verdict"),
    [
        (None, ["0", "1"], "fail"),
        ("0", ["0"], "ok"),
        ("GPU-aa", ["0"], "ok"),
        ("1", ["1"], "fail"),
        ("1,0", ["0", "1"], "fail"),
    ],
)
def test_only_gpus_that_the_job_may_use_are_judged(nvidia_smi, monkeypatch, visible, indices, verdict):
    nvidia_smi(TWO_GPUS)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    measured = measure_gpus(FIRST)

    assert [gpu["index"] for gpu in measured["gpus"]] == indices
    assert measured["usable"] == len(indices)
    assert judge_gpus({0: measured}, WHO).verdict == verdict


def test_good_gpus_are_counted():
    finding = judge_gpus(nodes([gpu(0), gpu(1)], [gpu(0), gpu(1)]), WHO)

    assert finding.verdict == "ok"
    assert finding.measured == {"num_gpus": 4, "names": ["NVIDIA H100 80GB HBM3"]}


@pytest.mark.parametrize(
    ("broken", "verdict", "words"),
    [
        (gpu(1, used_mib=40_000), "fail", "GPU 1 of n2 has 39.06 GiB in use by others"),
        (gpu(1, **{"ecc.errors.uncorrected.volatile.total": "2"}), "fail", "2 uncorrected memory error(s)"),
        (gpu(1, **{"clocks_throttle_reasons.hw_thermal_slowdown": "Active"}), "warn", "hw_thermal_slowdown"),
    ],
)
def test_a_gpu_that_is_not_fit_is_named(broken, verdict, words):
    finding = judge_gpus(nodes([gpu(0), gpu(1)], [gpu(0), broken], [gpu(0), gpu(1)]), WHO)

    assert finding.verdict == verdict
    assert words in finding.message
    assert finding.nodes_at_fault == (("n2",) if verdict == "fail" else ())


def test_values_the_driver_does_not_know_are_no_errors():
    unknown = parse_query("0, [N/A]\n1, [Not Supported]\n2, 0\n", ("index", "ecc"))

    assert [row["ecc"] for row in unknown] == [None, None, "0"]
    fine = gpu(0, **{"ecc.errors.uncorrected.volatile.total": None})
    assert judge_gpus(nodes([fine]), WHO).verdict == "ok"


def test_a_node_with_fewer_gpus_fails():
    finding = judge_gpus(nodes([gpu(0), gpu(1)], [gpu(0)]), WHO)

    assert finding.verdict == "fail"
    assert finding.nodes_at_fault == ("n2",)


def test_a_silent_nvidia_smi_warns_and_no_gpu_anywhere_is_not_available():
    silent = {0: {"usable": 8, "gpus": []}}

    assert judge_gpus(silent, WHO).verdict == "warn"
    assert judge_gpus(nodes([], []), WHO).verdict == "n/a"


def test_output_that_is_no_table_gives_no_gpu():
    assert (
        parse_query("NVIDIA-SMI has failed because it couldn't communicate with the driver.\n", STATE) == []
    )
