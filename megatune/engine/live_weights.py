"""ZeRO-3 weights that stay gathered: between forward and backward, between micro-batches, between steps.

Partitioned are then gradients, masters and optimizer state, which are 16 of 18 bytes a parameter with Adam.
DeepSpeed's own way to keep weights (a persistence threshold above every one) still empties and gathers all of them
after each step, and joins the pieces of each one anew. Here every weight keeps its memory, and only what a step has
changed is written. On the CPUs of one host that memory is shared: there is one copy for all data-parallel ranks, and
nothing is sent. The only rank of a data-parallel group computes with its partition itself, which is the whole.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch.profiler import record_function

from megatune.engine.replacing import method_of, replace_method
from megatune.engine.shared_memory import SharedMemory, share

# Its name from torch 2.13 on; the older one is announced to go.
_ALL_GATHER: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_ALIGNMENT = 64  # elements
_SENT_AT_A_TIME = 2**26
"""Elements of one all-gather: its buffer comes on top of the weights."""


class LiveWeights(ABC):
    """The parameters of a ZeRO-3 engine, whole on every rank. Collective: every rank makes one, of the same class."""

    is_shared = False
    """There is one copy of the weights on this host."""

    def __init__(self, parameters: Sequence[Any]) -> None:
        self.parameters = list(parameters)

    @property
    @abstractmethod
    def whole(self) -> list[torch.Tensor]:
        """The place of each weight, flat."""

    @abstractmethod
    def publish(self) -> None:
        """Bring what the optimizer has written into this rank's partitions to all ranks. Collective."""


def keep_live(zero: Any, parameters: Sequence[Any], group: dist.ProcessGroup) -> LiveWeights:
    """Keep `parameters` of the optimizer `zero` whole from here on. Collective: every rank calls it."""
    if dist.get_world_size(group) == 1:
        live: LiveWeights = _OwnPartitions(parameters)
    else:
        starts, end = _starts([int(p.ds_numel) for p in parameters])
        like = parameters[0].ds_tensor
        shared = share(end * like.dtype.itemsize, group) if like.device.type == "cpu" else None
        memory = torch.empty(end, dtype=like.dtype, device=like.device) if shared is None else shared.memory
        flat = memory.view(like.dtype)
        room = [flat[s : s + int(p.ds_numel)] for s, p in zip(starts, parameters, strict=True)]
        live = (
            _Gathered(parameters, room, group) if shared is None else _Shared(parameters, room, shared, group)
        )
    live.publish()
    for parameter, whole in zip(live.parameters, live.whole, strict=True):
        _keep(parameter, whole)
    _replace_gathering(zero, live)
    return live


class _OwnPartitions(LiveWeights):
    """Of the only rank of a data-parallel group: its partition of a weight is the weight."""

    @property
    def whole(self) -> list[torch.Tensor]:
        return [p.ds_tensor.data[: int(p.ds_numel)] for p in self.parameters]

    @record_function("megatune::gather")
    def publish(self) -> None:
        for parameter, partition in zip(self.parameters, self.whole, strict=True):
            parameter.data = partition.view(parameter.ds_shape)  # DeepSpeed may have moved it


class _InRoom(LiveWeights):
    """Of several ranks: each weight has room of its own, beside the partitions."""

    def __init__(self, parameters: Sequence[Any], room: list[torch.Tensor], group: dist.ProcessGroup) -> None:
        super().__init__(parameters)
        self._room, self._group = room, group
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)

    @property
    def whole(self) -> list[torch.Tensor]:
        return self._room

    def _piece(self, parameter: Any, whole: torch.Tensor, rank: int) -> torch.Tensor:
        length = int(parameter.ds_tensor.ds_numel)  # padded on the last ranks
        start = min(rank * length, whole.numel())
        return whole[start : start + length]


class _Shared(_InRoom):
    """The ranks of one host write their pieces into memory that all of them read."""

    is_shared = True

    def __init__(
        self,
        parameters: Sequence[Any],
        room: list[torch.Tensor],
        shared: SharedMemory,
        group: dist.ProcessGroup,
    ) -> None:
        super().__init__(parameters, room, group)
        self._shared = shared

    @record_function("megatune::gather")
    def publish(self) -> None:
        # No rank may still be computing with the old weights: the norm of the gradients has met all of them, but a
        # run may clip nothing and take none.
        self._shared.meet()
        own = [
            self._piece(p, whole, self._rank) for p, whole in zip(self.parameters, self._room, strict=True)
        ]
        written = [p.ds_tensor.data[: piece.numel()] for p, piece in zip(self.parameters, own, strict=True)]
        torch._foreach_copy_(own, written)
        self._shared.meet()


class _Gathered(_InRoom):
    """Every rank has a copy: the pieces are sent."""

    @record_function("megatune::gather")
    def publish(self) -> None:
        """In all-gathers of many weights each: a rank's pieces side by side, padded to the same length on all ranks."""
        pairs = list(zip(self.parameters, self._room, strict=True))
        while pairs:
            count, length = _how_many(
                [int(p.ds_tensor.ds_numel) for p, _ in pairs], _SENT_AT_A_TIME // self._size
            )
            part, pairs = pairs[:count], pairs[count:]
            sent = torch.cat([parameter.ds_tensor.data for parameter, _ in part])
            received = sent.new_empty(self._size, length)
            _ALL_GATHER(received.view(-1), sent, group=self._group)
            targets, sources = [], []
            for rank in range(self._size):
                offset = 0
                for parameter, whole in part:
                    piece = self._piece(parameter, whole, rank)
                    targets.append(piece)
                    sources.append(received[rank, offset : offset + piece.numel()])
                    offset += int(parameter.ds_tensor.ds_numel)
            torch._foreach_copy_(targets, sources)


def _replace_gathering(zero: Any, live: LiveWeights) -> None:
    """What DeepSpeed does before and after its optimizer: empty all weights, gather the persistent ones."""
    after_step = method_of(zero, "_post_step")
    zero.persistent_parameters = []
    replace_method(zero, "_partition_all_parameters", lambda: None)

    def then_publish(*args: Any, **kwargs: Any) -> None:
        after_step(*args, **kwargs)
        live.publish()

    replace_method(zero, "_post_step", then_publish)


def _keep(parameter: Any, whole: torch.Tensor) -> None:
    parameter.data = whole.view(parameter.ds_shape)
    parameter.ds_status = ZeroParamStatus.AVAILABLE
    parameter.ds_persist = True
    parameter.partition = lambda *_, **__: None  # DeepSpeed's hooks release what they think is theirs


def _starts(sizes: list[int]) -> tuple[list[int], int]:
    """Where each of `sizes` elements begins in one buffer, and where it ends."""
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += math.ceil(size / _ALIGNMENT) * _ALIGNMENT
    return starts, end


def _how_many(lengths: list[int], limit: int) -> tuple[int, int]:
    """The first of `lengths` that together stay within `limit`, at least one: their number and their sum."""
    count, total = 1, lengths[0]
    while count < len(lengths) and total + lengths[count] <= limit:
        total += lengths[count]
        count += 1
    return count, total
