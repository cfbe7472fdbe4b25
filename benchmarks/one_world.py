"""Short trainings in the same ranks, one after another: `torchrun --nproc_per_node 2 one_world.py JOBS.json`.

JOBS.json is a list; each entry is a run file and its overrides. Each training is all that a rank of `megatune train`
does but for entering and leaving the process group, which the first one enters: what many short trials cost most,
starting interpreters and loading libraries, is paid once.
"""

import gc
import json
import sys
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist

from megatune.config import load_run
from megatune.engine.accelerator import own_device
from megatune.engine.start import enter, leave
from megatune.engine.world import World, make_world
from megatune.launch.rank_info import RankInfo
from megatune.launch.ranks import discover_rank, export_rank
from megatune.train import rank as rank_module


def device_of(rank: RankInfo, *, timeout_s: float) -> torch.device:
    """The device of this rank, in the process group there is; the first training enters it."""
    if not dist.is_initialized():
        return enter(rank, timeout_s=timeout_s)
    return own_device(rank.local_rank, rank.local_world_size)


@cache
def world_of(tensor_parallel: int, device: torch.device, *, timeout_s: float | None = None) -> World:
    """The groups of a degree, made once: each group's threads wake all the time, and would slow what comes later."""
    return make_world(tensor_parallel, device, timeout_s=timeout_s)


def main(jobs: list[list[str]]) -> None:
    """Train them all. A failure ends this rank, and with it all."""
    rank = discover_rank()
    assert rank is not None, "torchrun starts this"
    export_rank(rank)
    rank_module.enter, rank_module.leave = device_of, lambda: None
    rank_module.make_world = world_of
    for number, (run_file, *overrides) in enumerate(jobs):
        code = rank_module.train_rank(load_run(Path(run_file), overrides), rank)
        assert code == 0, f"job {number} ended with {code}"
        gc.collect()
        if rank.rank == 0:
            print(f"{number + 1} of {len(jobs)}", file=sys.stderr, flush=True)
    leave()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
