"""A copy of a rank's state in host memory, that training leaves alone while it is written."""

import socket
from dataclasses import dataclass

import torch

from megatune.engine.state import RankState
from megatune.engine.world import World
from megatune.launch.devices import available_memory_bytes
from megatune.plan.snapshot import MOST_OF_AVAILABLE, pinned_bytes
from megatune.units import format_bytes


class HostCopy:
    """Memory for one snapshot, kept from save to save: to get it anew costs as much as to fill it."""

    def __init__(self) -> None:
        self._flat: torch.Tensor | None = None

    def of(self, state: RankState) -> RankState:
        """`state` as it is now, in host memory: pinned where the state is on a GPU. Overwrites the last copy.

        May run in a thread beside forward and backward, which do not change the state: on a GPU the copies have a
        stream of their own.
        """
        on_gpu = _gpu_of(state)
        flat = self._memory(state.num_bytes // torch.float32.itemsize, pinned=on_gpu is not None)
        if on_gpu is None:
            return self._filled(state, flat)
        stream = torch.cuda.Stream(on_gpu)
        with torch.cuda.stream(stream):
            copy = self._filled(state, flat)
        stream.synchronize()
        return copy

    def _filled(self, state: RankState, flat: torch.Tensor) -> RankState:
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        start = 0
        for kind, held in state.tensors.items():
            copies = tensors.setdefault(kind, {})
            for name, piece in held.items():
                assert piece.dtype == flat.dtype, "a rank's state is fp32"
                copies[name] = flat.narrow(0, start, piece.numel())
                copies[name].copy_(piece, non_blocking=True)
                start += piece.numel()
        return RankState(tensors, dict(state.scalars))

    def _memory(self, num_elements: int, *, pinned: bool) -> torch.Tensor:
        if self._flat is None or self._flat.numel() < num_elements:
            self._flat = None  # not both at once
            self._flat = torch.empty(num_elements, dtype=torch.float32, pin_memory=pinned)
        return self._flat


def _gpu_of(state: RankState) -> torch.device | None:
    """The GPU that holds `state`; None where the host does."""
    devices = {piece.device for held in state.tensors.values() for piece in held.values()}
    return next((device for device in devices if device.type == "cuda"), None)


@dataclass(frozen=True)
class SaveMode:
    """Whether saves are written behind training, and why."""

    is_async: bool
    reason: str

    def __str__(self) -> str:
        how = "written behind training" if self.is_async else "written while training waits"
        return f"checkpoints are {how}: {self.reason}"


def choose_mode(asked: bool | str, state: RankState, world: World) -> SaveMode:
    """What `checkpoint.async` comes to with this state on these machines. Collective.

    Ask after the first step, when the memory that training needs is taken.
    """
    own_bytes = state.num_bytes if _gpu_of(state) is None else pinned_bytes(state.num_bytes)
    told = world.gather_objects((socket.gethostname(), own_bytes, available_memory_bytes()))
    needed: dict[str, int] = {}
    available: dict[str, int | None] = {}
    for host, num_bytes, free in told:
        needed[host] = needed.get(host, 0) + num_bytes
        before = available.get(host, free)
        available[host] = None if before is None or free is None else min(before, free)
    return judge_memory(asked, needed, available)


def judge_memory(asked: bool | str, needed: dict[str, int], available: dict[str, int | None]) -> SaveMode:
    """`needed`, `available`: by host, bytes of its ranks' snapshots and of the memory that is left there."""
    if asked is False:
        return SaveMode(False, "checkpoint.async is false")
    unknown = [host for host, free in available.items() if free is None]
    if unknown:
        words = f"{unknown[0]} does not say how much memory is left"
        return SaveMode(
            asked is True, f"checkpoint.async is true, though {words}" if asked is True else words
        )
    room = {host: MOST_OF_AVAILABLE * (free or 0) - needed[host] for host, free in available.items()}
    tightest = min(room, key=room.__getitem__)
    words = (
        f"a snapshot takes {format_bytes(needed[tightest])} of the {format_bytes(available[tightest])} of host "
        f"memory available on {tightest}"
    )
    fits = room[tightest] >= 0
    if not fits:
        words += f", and at most {MOST_OF_AVAILABLE:.0%} may be taken"
    if asked is True:
        return SaveMode(True, words if fits else f"checkpoint.async is true, though {words}")
    return SaveMode(fits, words)
