"""What nvidia-smi prints, planted: full, broken, slowed down and silent GPUs."""

import pytest

from megatune.doctor.gpus import judge_gpus, parse_query
from megatune.doctor.verdict import Group

STATE = ("index", "uuid", "name", "memory.total", "memory.used")
WHO = Group(world_size=3, nodes={0: "n1", 1: "n2", 2: "n3"})


def gpu(index: int, used_mib: int = 4, **more: str | None) -> dict[str, str | None]:
    (row,) = parse_query(f"{index}, GPU-1, NVIDIA H100 80GB HBM3, 81559, {used_mib}\n", STATE)
    return {**row, **more}


def nodes(*gpus: list[dict[str, str | None]]) -> dict[int, dict[str, object]]:
    return {rank: {"usable": len(found), "gpus": found} for rank, found in enumerate(gpus)}


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
