"""How fast each device multiplies matrices, against the others of its kind."""

import time
from collections.abc import Callable

import torch

from megatune.doctor.place import Place
from megatune.doctor.verdict import Answers, Finding, Group, Json, Problem, conclude, median

_SLOW_SHARE = 0.85
_GPU_SIZE, _CPU_SIZE = 8192, 512
_GPU_TIMES, _CPU_TIMES = 30, 20


def measure_matmul(place: Place) -> Json:
    """Operations a second of a square product: bf16 on a GPU, fp32 on a CPU. The best of several.

    All ranks multiply at the same time, as in training: a node whose power or cooling does not
    carry all its GPUs shows only so.
    """
    on_gpu = place.device.type == "cuda"
    size = _GPU_SIZE if on_gpu else _CPU_SIZE
    dtype = torch.bfloat16 if on_gpu else torch.float32
    left = torch.randn(size, size, device=place.device, dtype=dtype)
    right = torch.randn(size, size, device=place.device, dtype=dtype)
    out = torch.empty_like(left)

    def multiply() -> None:
        torch.mm(left, right, out=out)

    seconds = _best_seconds(multiply, place.device, _GPU_TIMES if on_gpu else _CPU_TIMES)
    name = torch.cuda.get_device_name(place.device) if on_gpu else "cpu"
    return {"device": name, "flops_per_s": 2.0 * size**3 / seconds, "on_gpu": on_gpu}


def _best_seconds(act: Callable[[], None], device: torch.device, times: int) -> float:
    act()
    best = float("inf")
    for _ in range(times):
        wait_for_device(device)
        begun = time.perf_counter()
        act()
        wait_for_device(device)
        best = min(best, time.perf_counter() - begun)
    return best


def wait_for_device(device: torch.device) -> None:
    """Return when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def judge_matmul(answers: Answers, group: Group) -> Finding:
    """A device below 85 % of the median of its kind holds up every step of all others.

    On CPUs it only warns: cores are shared with whatever else runs there.
    """
    kinds: dict[str, dict[int, float]] = {}
    for rank, facts in answers.items():
        kinds.setdefault(facts["device"], {})[rank] = facts["flops_per_s"]
    problems, middles = [], {}
    for kind, speeds in kinds.items():
        middle = median(list(speeds.values())) or 0.0
        middles[kind] = middle
        for rank, speed in speeds.items():
            if speed < _SLOW_SHARE * middle:
                problems.append(_slow(rank, speed, middle, group, is_gpu=answers[rank]["on_gpu"]))
    if len(kinds) > 1:
        problems.append(
            Problem(
                verdict="warn",
                text=f"the job has {len(kinds)} kinds of devices: {', '.join(sorted(kinds))}",
                fix="The slowest kind sets the pace; ask for one with slurm.constraint.",
            )
        )
    shown = ", ".join(f"{kind} {middle / 1e12:.4g} TFLOP/s" for kind, middle in middles.items())
    return conclude(
        problems,
        good=f"median of each device: {shown}; none below {_SLOW_SHARE:.0%} of it",
        measured={"median_flops_per_s": middles},
        by_rank={rank: facts["flops_per_s"] for rank, facts in answers.items()},
    )


def _slow(rank: int, speed: float, middle: float, group: Group, *, is_gpu: bool) -> Problem:
    return Problem(
        verdict="fail" if is_gpu else "warn",
        text=f"{group.name(rank)} multiplies at {speed / 1e12:.4g} TFLOP/s, {speed / middle:.0%} of the median",
        fix="Leave the node out." if is_gpu else "See what else runs there (`top`).",
        nodes=(group.nodes[rank],) if is_gpu else (),
    )
