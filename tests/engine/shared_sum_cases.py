"""What ranks do in the tests of sums and meetings in shared memory."""

import random
import subprocess
import time
from unittest import mock

import torch
import torch.distributed as dist
from parity_steps import world_of

from megatune.engine import meeting
from megatune.engine.meeting import LINE_BYTES, Meeting
from megatune.engine.shared_memory import share
from megatune.engine.shared_sums import _SLOT_BYTES, SharedSums

SLOT_ELEMENTS = _SLOT_BYTES // 4


def sums_of(dtype_name: str, num_elements: int) -> tuple[float, bool]:
    """How far a sum is from torch's in fp64, as a part of the largest number; is it the same on all ranks?"""
    sums = SharedSums.install(_group())
    assert sums is not None
    dtype = getattr(torch, dtype_name)
    parts = [
        torch.randn(num_elements, generator=torch.Generator().manual_seed(rank)).to(dtype)
        for rank in _ranks()
    ]
    mine = parts[dist.get_rank()].clone()
    assert sums(mine)
    exact = torch.stack(parts).double().sum(dim=0)
    everyone = [torch.empty_like(mine) for _ in _ranks()]
    dist.all_gather(everyone, mine)
    return (
        float((mine.double() - exact).abs().max() / exact.abs().max()),
        all(torch.equal(mine, other) for other in everyone),
    )


def many_sums(rounds: int) -> list[float]:
    """Sums of changing length right after one another, with ranks that stop now and then; the wrong ones."""
    sums = SharedSums.install(_group())
    assert sums is not None
    lengths, pauses = random.Random(7), random.Random(dist.get_rank())
    wrong = []
    for turn in range(rounds):
        tensor = torch.full((lengths.randint(1, 2 * SLOT_ELEMENTS),), float(turn + dist.get_rank()))
        if pauses.random() < 0.1:
            time.sleep(pauses.random() / 100)
        sums(tensor)
        expected = float(sum(turn + rank for rank in _ranks()))
        if not bool((tensor == expected).all()):
            wrong.append(expected)
    return wrong


def left_to_others() -> list[bool]:
    """Tensors that are not summed here."""
    sums = SharedSums.install(_group())
    assert sums is not None
    return [sums(torch.ones(4, dtype=torch.float64)), sums(torch.ones(4, 4).t()[:2]), sums(torch.ones(3))]


def one_does_not_come(timeout_s: float) -> str:
    """Rank 1 stays away; what rank 0 is told."""
    shared = share(LINE_BYTES * 2, _group())
    assert shared is not None
    side = Meeting(shared.memory[: LINE_BYTES * 2], rank=dist.get_rank(), size=2, timeout_s=timeout_s)
    dist.barrier()
    told = _words_of(side) if dist.get_rank() == 0 else ""
    dist.barrier()
    return told


def one_has_ended() -> str:
    """Rank 1 leaves the number of a process that has ended; what rank 0 is told."""
    shared = share(LINE_BYTES * 2, _group())
    assert shared is not None
    ended = subprocess.Popen(["true"])  # a zombie until it is waited for
    with mock.patch.object(meeting.os, "getpid", return_value=ended.pid):
        side = Meeting(shared.memory[: LINE_BYTES * 2], rank=dist.get_rank(), size=2, timeout_s=60)
    dist.barrier()
    told = _words_of(side) if dist.get_rank() == 0 else ""
    dist.barrier()
    ended.wait()
    return told


def _words_of(side: Meeting) -> str:
    try:
        side.meet()
    except RuntimeError as error:
        return str(error)
    return "met"


def _group() -> dist.ProcessGroup:
    group = world_of(1).data_group
    assert group is not None
    return group


def _ranks() -> range:
    return range(dist.get_world_size())
