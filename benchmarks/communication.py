"""All-gather, reduce-scatter and all-reduce by size: `python benchmarks/communication.py [RANKS] [ROUNDS]`.

One JSON line for each collective and size: median and spread of the seconds a call takes on the slowest rank,
processor seconds of all ranks, and the bytes a rank sends a second by the ring algorithm's count.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

SIZES_BYTES = [2**12, 2**16, 2**20, 2**24, 2**26]
_CALLS = 3


def measure(call: Callable[[], object], rounds: int) -> tuple[list[float], float]:
    """Seconds of a call on the slowest rank, round by round; processor seconds a call on all ranks."""
    import torch
    import torch.distributed as dist

    call()
    walls, cpu_started = [], time.process_time()
    for _ in range(rounds):
        dist.barrier()
        started = time.perf_counter()
        for _ in range(_CALLS):
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        walls.append((time.perf_counter() - started) / _CALLS)
    cpu_s = (time.process_time() - cpu_started) / (rounds * _CALLS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    slowest = torch.tensor(walls, dtype=torch.float64, device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    processor = torch.tensor([cpu_s], dtype=torch.float64, device=device)
    dist.all_reduce(processor)
    return slowest.tolist(), processor.item()


def run_rank(rounds: int) -> None:
    """What each rank of torchrun does."""
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    size = dist.get_world_size()
    for num_bytes in SIZES_BYTES:
        whole = torch.ones(num_bytes // 4, device="cuda" if on_gpu else "cpu")
        part = torch.ones(num_bytes // 4 // size, device=whole.device)
        share = (size - 1) / size * num_bytes
        calls = {
            "all_gather": (lambda w=whole, p=part: dist.all_gather_into_tensor(w, p), share),
            "reduce_scatter": (lambda w=whole, p=part: dist.reduce_scatter_tensor(p, w), share),
            "all_reduce": (lambda w=whole: dist.all_reduce(w), 2 * share),
        }
        for name, (call, sent_bytes) in calls.items():
            walls, cpu_s = measure(call, rounds)
            if dist.get_rank() == 0:
                median = statistics.median(walls)
                entry = {
                    "collective": name,
                    "bytes": num_bytes,
                    "ranks": size,
                    "backend": dist.get_backend(),
                    "median_s": median,
                    "range_s": [min(walls), max(walls)],
                    "cpu_s": cpu_s,
                    "bytes_per_s": sent_bytes / median,
                }
                print(json.dumps(entry), flush=True)
    dist.destroy_process_group()


def main() -> None:
    ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    if "RANK" in os.environ:
        run_rank(rounds)
        return
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    subprocess.run([*torchrun, __file__, str(ranks), str(rounds)], check=True)


if __name__ == "__main__":
    main()
