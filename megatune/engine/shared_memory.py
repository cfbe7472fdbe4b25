"""Memory that the ranks of one host see together: what gloo sends through sockets is only written and read there."""

import mmap
import os
import socket
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import record_function

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def share(num_bytes: int, group: dist.ProcessGroup) -> torch.Tensor | None:
    """`num_bytes` that every rank of `group` reads and writes, as uint8; None where they cannot have them.

    They cannot on different hosts, without /proc, or where one process may not open the files of
    another. Pages take memory once they are touched, and go when the last rank ends: the file has no name.
    Collective: every rank of the group calls it.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    hosts: list[str | None] = [None] * size
    dist.all_gather_object(hosts, _host(), group=group)
    if len(set(hosts)) > 1:
        return None
    file = _create(num_bytes) if rank == 0 else None
    place = [None if file is None else f"/proc/{os.getpid()}/fd/{file}"]
    dist.broadcast_object_list(place, group=group, group_src=0)
    memory = None if place[0] is None else _open(place[0], num_bytes)
    everyone = torch.tensor([memory is not None], dtype=torch.int32)
    dist.all_reduce(everyone, op=dist.ReduceOp.MIN, group=group)
    if file is not None:
        os.close(file)  # all have it open, or none will
    return memory if everyone.item() else None


def meet(group: dist.ProcessGroup) -> None:
    """Wait for the ranks of the group: all that they have written before is there for all afterwards."""
    with record_function("megatune::wait"):
        dist.barrier(group)


def _host() -> str:
    """Names a running kernel: containers of one host share it, hosts with one name do not."""
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
    return f"{socket.gethostname()} {boot}"


def _create(num_bytes: int) -> int | None:
    """The number of a file in memory that has no name."""
    with suppress(OSError, AttributeError):  # AttributeError: only Linux has memfd_create
        file = os.memfd_create("megatune")
        os.ftruncate(file, num_bytes)
        return file
    return None


def _open(path: str, num_bytes: int) -> torch.Tensor | None:
    with suppress(OSError):
        file = os.open(path, os.O_RDWR)
        try:
            return torch.frombuffer(mmap.mmap(file, num_bytes), dtype=torch.uint8)
        finally:
            os.close(file)
    return None
