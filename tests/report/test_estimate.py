"""Planned beside measured: which figure is compared with which, and what is unknown stays so."""

from typing import Any

import pytest

from megatune.report.estimate import compare, comparison_table
from megatune.report.records import MemoryRecord, PlanRecord, RunRecord, to_object
from megatune.report.tables import show

GIB = 2**30
DEVICE = {
    "weights": 2 * GIB,
    "gradients": 4 * GIB,
    "optimizer": 12 * GIB,
    "activations": 5 * GIB,
    "loss": GIB,
    "fragmentation": GIB,
    "framework": GIB,
}


def entries(
    plan: PlanRecord, memory: MemoryRecord | None, seconds: tuple[float, ...] = ()
) -> list[dict[str, Any]]:
    start = to_object(RunRecord(model="m", world_size=8, num_nodes=2))
    steps = [{"event": "step", "step": n + 1, "step_seconds": s} for n, s in enumerate(seconds)]
    return [start, to_object(plan), *([to_object(memory)] if memory else []), *steps]


def memory(**changes: Any) -> MemoryRecord:
    values: dict[str, Any] = {
        "step": 3, "weights": 2 * GIB, "gradients": 4 * GIB, "optimizer": 12 * GIB, "on_host": True,
        "framework": GIB, "after_forward": GIB, "peak": 26 * GIB, "fragmentation": None,
        "shared_memory": None,
    }  # fmt: skip
    return MemoryRecord(**{**values, **changes})


def rows(found: Any) -> dict[str, tuple[Any, Any]]:
    return {one.name: (one.estimated, one.measured) for one in found.memory}


def test_on_a_cpu_what_steps_add_is_the_peak_less_what_stays() -> None:
    found = compare(
        entries(PlanRecord(device_bytes=DEVICE, step_seconds=2.0), memory(), (9.0, 9.0, 1.0, 3.0, 2.5))
    )
    assert found is not None
    assert rows(found)["what steps add"] == (7 * GIB, 7 * GIB), "fragmentation is in the process's own peak"
    assert rows(found)["total"] == (26 * GIB, 26 * GIB)
    assert (found.step_seconds.estimated, found.step_seconds.measured) == (2.0, 2.5), "two steps warm up"
    assert found.step_seconds.error == pytest.approx(-0.2)


def test_shared_memory_is_told_apart_and_in_the_total() -> None:
    plan = PlanRecord(device_bytes=DEVICE | {"shared_memory": 2 * GIB})

    known, unknown = (compare(entries(plan, memory(shared_memory=size))) for size in (3 * GIB, None))

    assert known is not None and unknown is not None
    assert rows(known)["what steps add"] == (7 * GIB, 7 * GIB)
    assert rows(known)["shared memory"] == (2 * GIB, 3 * GIB)
    assert rows(known)["total"] == (28 * GIB, 29 * GIB)
    assert rows(unknown)["shared memory"] == (2 * GIB, None)
    assert rows(unknown)["total"] == (28 * GIB, None)


def test_on_a_gpu_the_allocator_tells_fragmentation_apart_and_offloaded_states_are_no_part_of_the_peak() -> (
    None
):
    device = DEVICE | {"gradients": 0, "optimizer": 0, "nccl": GIB}
    plan = PlanRecord(
        device_bytes=device,
        host_bytes={"offloaded_gradients": 16 * GIB, "offloaded_optimizer": 48 * GIB},
    )
    found = compare(entries(plan, memory(on_host=False, peak=10 * GIB, framework=2 * GIB, fragmentation=GIB)))
    assert found is not None
    assert rows(found)["optimizer"] == (12 * GIB, 12 * GIB), "a rank's part of its node"
    assert rows(found)["what steps add"] == (6 * GIB, 6 * GIB)
    assert rows(found)["fragmentation"] == (GIB, GIB)
    assert rows(found)["framework"] == (2 * GIB, 2 * GIB)
    assert rows(found)["total"] == (11 * GIB, 11 * GIB)


def test_what_nobody_measured_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(entries(PlanRecord(device_bytes=DEVICE), None))
    assert found is not None
    assert {measured for _, measured in rows(found).values()} == {None}
    show({}, comparison_table(found), as_json=False)
    assert capsys.readouterr().out.count("n/a") >= 12


def test_a_run_that_nobody_planned_has_no_comparison() -> None:
    assert compare(entries(PlanRecord(why="a model nobody knows"), memory())) is None
    assert compare([]) is None


def test_only_the_last_start_counts() -> None:
    first = entries(PlanRecord(device_bytes=DEVICE), memory())
    assert compare([*first, *entries(PlanRecord(), None)]) is None
