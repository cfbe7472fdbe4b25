"""Every moment of a profiled step belongs to one phase, and the phases add up to the step."""

from typing import Any

import pytest

from megatune.report.step_profile import PHASES, STEP, summarise


def event(name: str, start: float, duration: float, cat: str = "cpu_op", tid: int = 1) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": start, "dur": duration, "cat": cat, "tid": tid}


def named(name: str, start: float, duration: float) -> dict[str, Any]:
    return event(name, start, duration, "user_annotation")


ON_CPU = [
    event("aten::before", 0, 50),
    named(STEP, 100, 1000),
    named("megatune::data", 110, 40),
    event("aten::mm", 200, 300),
    event("aten::empty", 250, 20),
    named("megatune::gather", 520, 100),
    event("aten::cat", 530, 60),
    event("c10d::_allgather_base_", 595, 20),
    event("c10d::allreduce_", 640, 30),
    named("megatune::optimizer", 700, 200),
    event("aten::_fused_adamw_", 710, 100),
    named("megatune::reduce", 910, 100),
    named("megatune::wait", 920, 50),
    event("c10d::barrier", 925, 10),
    event("aten::elsewhere", 300, 500, tid=2),
]


def test_a_moment_belongs_to_the_innermost_range_around_it() -> None:
    found = summarise(ON_CPU)

    milliseconds = {phase: round(seconds * 1e6) for phase, seconds in found.by_phase.items()}
    assert milliseconds == {
        "data": 40,
        "compute": 300,
        "gather": 100,
        "tensor": 30,
        "optimizer": 200,
        "reduce": 50,
        "wait": 50,
        "other": 230,
    }
    assert found.total_s == pytest.approx(1e-3)
    assert sum(found.by_phase.values()) == pytest.approx(found.total_s)


def test_the_page_names_the_phases_and_what_took_longest() -> None:
    text = summarise(ON_CPU).to_text()

    assert all(phase in text for phase in PHASES)
    assert "30.0%" in text
    assert text.index("aten::mm") < text.index("aten::cat")


def test_on_a_gpu_kernels_count_and_the_rest_of_the_step_is_idle() -> None:
    kernels = [
        event("ampere_bf16_s16816gemm", 0, 400, "kernel", 7),
        event("ncclDevKernel_AllGather_RING_LL", 0, 100, "kernel", 8),
        event("ncclDevKernel_ReduceScatter_Sum_f32", 0, 50, "kernel", 8),
        event("multi_tensor_apply_kernel<AdamFunctor>", 0, 150, "kernel", 7),
    ]
    found = summarise([named(STEP, 0, 500), named(STEP, 600, 500), *kernels])

    assert found.is_gpu and found.num_steps == 2
    expected = {"compute": 400, "gather": 100, "reduce": 50, "optimizer": 150, "other": 300}
    assert {k: round(v * 1e6) for k, v in found.by_phase.items() if v} == expected


def test_a_trace_without_a_whole_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no whole step"):
        summarise([event("aten::mm", 0, 10)])
