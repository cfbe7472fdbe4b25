"""The process group of training and its collectives: do they work, how long do they take."""

import datetime
import time
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist

from megatune.doctor.matmul import wait_for_device
from megatune.doctor.place import Place
from megatune.doctor.verdict import Answers, Finding, Group, Json, Problem, conclude, not_available
from megatune.units import format_bytes

_SIZES_BYTES = {"cpu": (1024, 2**17, 2**22), "cuda": (1024, 2**20, 2**25, 2**28)}
_MOST_TIMES = 10
_TARGET_S = 0.15  # of repetitions for one size of one collective
_POLL_S = 0.0005


def measure_group(place: Place) -> Json:
    """Enter the process group and sum a one of every rank. Collective: every rank calls it."""
    begun = time.monotonic()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    backend = "nccl" if place.device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=place.exchange.below("group"),
        rank=place.rank.rank,
        world_size=place.rank.world_size,
        timeout=datetime.timedelta(seconds=place.left_s()),
        device_id=place.device if backend == "nccl" else None,
    )
    ones = torch.ones(1, device=place.device)
    finish(dist.all_reduce(ones, async_op=True), place)
    return {"backend": backend, "seconds": round(time.monotonic() - begun, 3), "sum": float(ones.item())}


def judge_group(answers: Answers, group: Group) -> Finding:
    """The sum of ones must be the number of ranks."""
    problems = [
        Problem(
            verdict="fail",
            text=f"{group.name(rank)} got {facts['sum']:g} as the sum of {group.world_size} ones",
            fix="The network or a device returns wrong data: leave the node out.",
            nodes=(group.nodes[rank],),
        )
        for rank, facts in answers.items()
        if facts["sum"] != group.world_size
    ]
    slowest = max((facts["seconds"] for facts in answers.values()), default=0.0)
    backend = next((facts["backend"] for facts in answers.values()), "n/a")
    return conclude(
        problems,
        good=f"{backend} joined {len(answers)} rank(s) in {slowest:.1f} s, and its first sum is right",
        measured={"backend": backend, "slowest_s": slowest},
    )


def finish(work: dist.Work | None, place: Place) -> None:
    """Wait until a collective is done. Raises TimeoutError or RuntimeError when it does not end in time."""
    assert work is not None, "this rank takes part in it"
    if place.device.type != "cuda":
        work.wait(datetime.timedelta(seconds=place.left_s()))
        return
    # NCCL's wait only orders streams, and a synchronise that hangs cannot be left: ask instead.
    work.wait()
    done = torch.cuda.Event()
    done.record()
    while not done.query():
        if place.left_s() <= 0.1:
            raise TimeoutError("a collective did not end in time")
        time.sleep(_POLL_S)


Collective = Callable[[torch.Tensor, torch.Tensor], dist.Work]
"""Starts a collective on a whole tensor and this rank's share of it; returns torch's handle."""

_COLLECTIVES: dict[str, Collective] = {
    "all_reduce": lambda whole, _share: dist.all_reduce(whole, async_op=True),
    "all_gather": lambda whole, share: dist.all_gather_into_tensor(whole, share, async_op=True),
    "reduce_scatter": lambda whole, share: dist.reduce_scatter_tensor(share, whole, async_op=True),
}


def measure_collectives(place: Place) -> Json:
    """Seconds of each collective by the bytes of the whole tensor. Collective: every rank calls it.

    Sizes that would not fit into the time left are not begun; all ranks agree on that.
    """
    found: dict[str, dict[str, float]] = {}
    num_ranks = place.rank.world_size
    stop_at = place.left_s() / 2  # the first slow size must not use up the time in which to tell of it
    for num_bytes in _SIZES_BYTES[place.device.type]:
        share = torch.zeros(max(1, num_bytes // 4 // num_ranks), device=place.device)
        whole = torch.zeros(share.numel() * num_ranks, device=place.device)
        for name, start in _COLLECTIVES.items():
            times = _agree_on_times(start, whole, share, place, stop_at)
            if times == 0:
                return found
            seconds = _time(start, whole, share, place, times)
            found.setdefault(name, {})[str(whole.numel() * 4)] = seconds
    return found


def _agree_on_times(
    start: Collective, whole: torch.Tensor, share: torch.Tensor, place: Place, stop_at: float
) -> int:
    """How often to repeat, by the slowest rank's first two tries; 0 when a rank has no time left."""
    finish(start(whole, share), place)
    first_s = _time(start, whole, share, place, 1)
    slowest = torch.tensor([first_s, float(place.left_s() < stop_at)], device=place.device)
    finish(dist.all_reduce(slowest, op=dist.ReduceOp.MAX, async_op=True), place)
    estimate_s, is_late = slowest.tolist()
    return 0 if is_late else max(1, min(_MOST_TIMES, int(_TARGET_S / max(estimate_s, 1e-6))))


def _time(start: Collective, whole: torch.Tensor, share: torch.Tensor, place: Place, times: int) -> float:
    """Seconds of one call, the mean over `times` calls."""
    wait_for_device(place.device)
    begun = time.perf_counter()
    for _ in range(times):
        finish(start(whole, share), place)
    return (time.perf_counter() - begun) / times


def judge_collectives(answers: Answers, group: Group) -> Finding:
    """Time of the slowest rank and the bus bandwidth of each collective and size.

    Bus bandwidth is bytes / seconds x 2 (n-1)/n for all_reduce and (n-1)/n for the others, as nccl-tests
    counts it (doc/PERFORMANCE.md there): it does not fall with the number of ranks.
    """
    num_ranks = group.world_size
    if num_ranks == 1:
        return not_available("one rank has nobody to talk to")
    measured: dict[str, dict[str, dict[str, float]]] = {}
    for name in _COLLECTIVES:
        sizes = {size for facts in answers.values() for size in facts.get(name, {})}
        factor = (2 if name == "all_reduce" else 1) * (num_ranks - 1) / num_ranks
        for size in sorted(sizes, key=int):
            slowest = max(facts[name][size] for facts in answers.values() if size in facts.get(name, {}))
            measured.setdefault(name, {})[size] = {
                "seconds": slowest,
                "bus_bytes_per_s": factor * int(size) / slowest,
            }
    shown = []
    for name, sizes_of in measured.items():
        largest = max(sizes_of, key=int)
        speed = sizes_of[largest]["bus_bytes_per_s"]
        shown.append(f"{name} {format_bytes(speed)}/s at {format_bytes(int(largest))}")
    return conclude([], good="bus bandwidth: " + ", ".join(shown), measured=measured)
