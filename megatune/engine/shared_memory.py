"""Memory that the ranks of one host see together: what gloo sends through sockets is only written and read there."""

import mmap
import os
import socket
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import record_function

from megatune.engine.meeting import LINE_BYTES, Meeting, can_meet

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SharedMemory:
    """`memory`, uint8, is the same on all ranks of the group."""

    def __init__(self, whole: torch.Tensor, group: dist.ProcessGroup) -> None:
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        lines, self.memory = whole[: size * LINE_BYTES], whole[_lines_bytes(size) :]
        timeout_s = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
        self._group = group
        self._meeting = Meeting(lines, rank=rank, size=size, timeout_s=timeout_s) if can_meet() else None

    def meet(self) -> None:
        """Wait for the ranks of the group: all that they have written before is there for all afterwards."""
        with profiled("megatune::wait"):
            if self._meeting is None:
                dist.barrier(self._group)
            else:
                self._meeting.meet()


def profiled(name: str) -> AbstractContextManager[object]:
    """Show the block in a profile as `name`; torch's own mark costs some ten microseconds without one."""
    return record_function(name) if torch.autograd.profiler._is_profiler_enabled else nullcontext()


def share(num_bytes: int, group: dist.ProcessGroup) -> SharedMemory | None:
    """`num_bytes` that every rank of `group` reads and writes; None where they cannot have them.

    They cannot on different hosts, without /proc, or where one process may not open the files of
    another. Pages take memory once they are touched, and go when the last rank ends: the file has no name.
    Collective: every rank of the group calls it.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    num_bytes += _lines_bytes(size)
    hosts: list[str | None] = [None] * size
    dist.all_gather_object(hosts, _host(), group=group)
    if len(set(hosts)) > 1:
        return None
    file = _create(num_bytes) if rank == 0 else None
    place = [None if file is None else f"/proc/{os.getpid()}/fd/{file}"]
    dist.broadcast_object_list(place, group=group, group_src=0)
    whole = None if place[0] is None else _open(place[0], num_bytes)
    shared = None if whole is None else SharedMemory(whole, group)
    everyone = torch.tensor([shared is not None], dtype=torch.int32)
    dist.all_reduce(everyone, op=dist.ReduceOp.MIN, group=group)
    if file is not None:
        os.close(file)  # all have it open, or none will
    return shared if everyone.item() else None


def _lines_bytes(size: int) -> int:
    """In whole pages, so that the rest is aligned for every dtype."""
    return -(-size * LINE_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE


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
