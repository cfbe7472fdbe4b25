"""Times one peer on the ranks torchrun starts: `torchrun --nproc_per_node 2 run_peer.py SPEC.json`.

SPEC: what `Spec` below holds. Rank 0 writes the measurement to its `answer`, as JSON.
"""

import json
import os
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatune.data.batches import Batch, step_batches
from megatune.data.prepared import PreparedSet
from megatune.data.sampler import position_of_step


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One measurement."""

    peer: str
    model: str
    data: str
    """A prepared set's folder; each of its rows is one whole document."""
    answer: str
    precision: str
    micro_batch: int
    """Rows of a rank in a step, where every rank sees different ones."""
    warmup_steps: int
    steps: int
    learning_rate: float = 1e-4
    seed: int = 42


@dataclass
class Clock:
    """Seconds of the steps that count, on this rank."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    _started: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        dist.barrier()
        self._started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.wall_s.append(time.perf_counter() - self._started[0])
        self.cpu_s.append(time.process_time() - self._started[1])


def own_batches(spec: Spec, prepared: PreparedSet, data_parallel: int) -> list[Batch]:
    """This rank's rows of every step, in the order megatune trains on them."""
    rank = dist.get_rank() * data_parallel // dist.get_world_size()
    global_rows = spec.micro_batch * dist.get_world_size()
    return [
        step_batches(
            prepared,
            position_of_step(step, num_rows=prepared.num_rows, global_rows=global_rows),
            seed=spec.seed,
            micro_batch=global_rows // data_parallel,
            accumulation=1,
            data_parallel=data_parallel,
            dp_rank=rank,
        )[0]
        for step in range(spec.warmup_steps + spec.steps)
    ]


def own_device() -> torch.device:
    """This rank's GPU, or the CPU."""
    return (
        torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def join() -> None:
    """Enter the group of all peers, which sums tensors of both kinds: the Trainer's own has NCCL alone on a GPU,
    and figures lie on the host. Collective."""
    device = own_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def measure(spec: Spec) -> dict[str, Any]:
    """Train and time. The same on every rank but for the loss, which is this rank's."""
    from engines import PEERS, Setting

    setting = Setting(
        model=spec.model,
        precision=spec.precision,
        learning_rate=spec.learning_rate,
        seed=spec.seed,
        device=own_device(),
        micro_batch=spec.micro_batch,
    )
    peer, clock, losses = PEERS[spec.peer](setting), Clock(), []
    for batch in own_batches(spec, PreparedSet.open(Path(spec.data)), peer.data_parallel):
        clock.start()
        loss = peer.step(batch.input_ids.to(setting.device))
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
        clock.stop()
        dist.all_reduce(loss := loss.float())
        losses.append(loss.item() / dist.get_world_size())
    return summary(spec, clock, losses, peer.engine)


def summary(spec: Spec, clock: Clock, losses: list[float], engine: str) -> dict[str, Any]:
    """The measurement of all ranks. Collective."""
    cpu = torch.tensor(clock.cpu_s[spec.warmup_steps :], dtype=torch.float64)
    dist.all_reduce(cpu)
    held = memory_peaks()
    memory = torch.tensor([float(size or 0) for size in held.values()], dtype=torch.float64)
    dist.all_reduce(memory, op=dist.ReduceOp.MAX)
    return {
        "engine": engine,
        "losses": losses,
        "step_seconds": clock.wall_s[spec.warmup_steps :],
        "cpu_seconds": cpu.tolist(),
        **{
            name: None if own is None else int(most)
            for (name, own), most in zip(held.items(), memory.tolist(), strict=True)
        },
    }


def memory_peaks() -> dict[str, int | None]:
    """The most this rank has held, by kind; None where there is no GPU."""
    on_gpu = torch.cuda.is_available()
    return {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    spec = Spec(**json.loads(Path(sys.argv[1]).read_text()))
    join()
    if spec.peer == "trainer-zero3":
        from hf_trainer import measure as measure_trainer

        found = measure_trainer(spec)
    else:
        found = measure(spec)
    if dist.get_rank() == 0:
        Path(spec.answer).write_text(json.dumps(found))
    dist.barrier()
    # The measurement is written: gloo's threads sometimes abort an interpreter that takes itself apart.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
