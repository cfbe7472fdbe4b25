"""What the machine can do at best, measured with as many ranks as a suite: products, memory, links.

`measure_peaks` starts `python -m megatune.bench.peaks RANKS`, whose processes work at the same time, as ranks do.
"""

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from megatune.bench.child import output_of
from megatune.errors import LaunchError
from megatune.launch.processes import module_command

_SIZE, _TIMES = 1024, 8
_COPY_BYTES = 2**28
_SENT_BYTES = 2**26
_TIMEOUT_S = 300.0


def measure_peaks(num_ranks: int) -> dict[str, Any] | None:
    """Operations and bytes a second of one rank while all work; None where it cannot be measured.

    `link_bytes_per_s` is what a rank sends in a large all-reduce by the ring's count, None for one rank.
    """
    command = module_command("megatune.bench.peaks", str(num_ranks))
    with tempfile.TemporaryDirectory(prefix="megatune-peaks-") as folder:
        try:
            text = output_of(command, "the machine's peaks", _TIMEOUT_S, temporary=Path(folder))
        except LaunchError:
            return None
    found = json.loads(text.splitlines()[-1])
    assert isinstance(found, dict), "it was printed below"
    return found


def one_rank(number: int) -> dict[str, float]:
    """The best of several: products of each precision, and a copy in the device's memory."""
    import torch

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", number % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    torch.set_num_threads(1)
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        size = 8 * _SIZE if on_gpu else _SIZE
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        found[name] = 2.0 * size**3 / _best_seconds(partial(torch.mm, left, right), on_gpu)
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    # A copy reads and writes each byte.
    found["memory"] = 2.0 * _COPY_BYTES / _best_seconds(lambda: target.copy_(source), on_gpu)
    return found


def _best_seconds(act: Callable[[], object], on_gpu: bool) -> float:
    import torch

    best = float("inf")
    for _ in range(_TIMES):
        if on_gpu:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        act()
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return best


def one_end(rank: int, num_ranks: int, store: str, answer: Any) -> None:
    """Bytes a second that this rank sends at best, into `answer`."""
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks
    )
    answer.put(sent_bytes_per_s(device))
    dist.destroy_process_group()


def sent_bytes_per_s(device: Any) -> float:
    """What this rank, on a torch.device, sends at best in a large all-reduce, by the ring's count. Collective."""
    import torch
    import torch.distributed as dist

    size = dist.get_world_size()
    whole = torch.ones(_SENT_BYTES // 4, device=device)
    seconds = _best_seconds(lambda: dist.all_reduce(whole), device.type == "cuda")
    return 2 * (size - 1) / size * _SENT_BYTES / seconds


def link_rate(num_ranks: int) -> float | None:
    """The median of `one_end` over the ranks."""
    if num_ranks == 1:
        return None
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory(prefix="megatune-peaks-") as folder:
        ends = [
            context.Process(target=one_end, args=(rank, num_ranks, f"{folder}/store", answers), daemon=True)
            for rank in range(num_ranks)
        ]
        for end in ends:
            end.start()
        found = [answers.get(timeout=_TIMEOUT_S / 2) for _ in ends]
        for end in ends:
            end.join()
    return float(statistics.median(found))


def main(num_ranks: int) -> None:
    """Measure on all ranks at once, and print the medians."""
    with multiprocessing.get_context("spawn").Pool(num_ranks) as pool:
        by_rank = pool.map(one_rank, range(num_ranks), chunksize=1)
    middle = {name: statistics.median(rank[name] for rank in by_rank) for name in by_rank[0]}
    print(
        json.dumps(
            {
                "ranks": num_ranks,
                "flops_per_s": {name: middle[name] for name in ("fp32", "bf16")},
                "memory_bytes_per_s": middle["memory"],
                "link_bytes_per_s": link_rate(num_ranks),
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
