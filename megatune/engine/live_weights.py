"""ZeRO-3 weights that stay gathered: between forward and backward, between micro-batches, between steps.

Partitioned are then gradients, masters and optimizer state, which are 16 of 18 bytes a parameter with Adam.
DeepSpeed's own way to keep weights (a persistence threshold above every one) still empties and gathers all of them
after each step, and joins the pieces of each one anew. Here every weight keeps its memory, and only what a step has
changed is written. On the CPUs of one host that memory is shared: there is one copy for all data-parallel ranks, and
nothing is sent. The only rank of a data-parallel group computes with its partition itself, which is the whole.
"""

import math
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


class LiveWeights:
    """Keeps the parameters of a ZeRO-3 engine whole on every rank. Collective: every rank makes one."""

    def __init__(self, zero: Any, parameters: Sequence[Any], group: dist.ProcessGroup) -> None:
        self._zero, self._group, self._parameters = zero, group, list(parameters)
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        self._shared: SharedMemory | None = None
        self._whole = _partitions(self._parameters) if self._size == 1 else self._made_room()
        self.publish()
        for parameter, whole in zip(self._parameters, self._whole, strict=True):
            _keep(parameter, whole)
        self._replace_gathering()

    def _made_room(self) -> list[torch.Tensor]:
        """A place for each weight, flat; in shared memory where there is some."""
        first = self._parameters[0]
        device, dtype = first.ds_tensor.device, first.ds_tensor.dtype
        starts, end = _starts([int(p.ds_numel) for p in self._parameters])
        if device.type == "cpu":
            self._shared = share(end * dtype.itemsize, self._group)
        flat = (
            torch.empty(end, dtype=dtype, device=device)
            if self._shared is None
            else self._shared.memory.view(dtype)
        )
        return [flat[s : s + int(p.ds_numel)] for s, p in zip(starts, self._parameters, strict=True)]

    @property
    def is_shared(self) -> bool:
        """There is one copy of the weights on this host."""
        return self._shared is not None

    @record_function("megatune::gather")
    def publish(self) -> None:
        """Bring what the optimizer has written into this rank's partitions to all ranks. Collective."""
        if self._size == 1:
            for parameter, partition in zip(self._parameters, _partitions(self._parameters), strict=True):
                parameter.data = partition.view(parameter.ds_shape)  # DeepSpeed may have moved it
            return
        if self._shared is None:
            self._gather()
            return
        # No rank may still be computing with the old weights: the norm of the gradients has met all of them, but a
        # run may clip nothing and take none.
        self._shared.meet()
        own = [
            self._piece(p, whole, self._rank) for p, whole in zip(self._parameters, self._whole, strict=True)
        ]
        torch._foreach_copy_(
            own, [p.ds_tensor.data[: o.numel()] for p, o in zip(self._parameters, own, strict=True)]
        )
        self._shared.meet()

    def _piece(self, parameter: Any, whole: torch.Tensor, rank: int) -> torch.Tensor:
        length = int(parameter.ds_tensor.ds_numel)  # padded on the last ranks
        start = min(rank * length, whole.numel())
        return whole[start : start + length]

    def _gather(self) -> None:
        """In all-gathers of many weights each: a rank's pieces side by side, padded to the same length on all ranks."""
        pairs = list(zip(self._parameters, self._whole, strict=True))
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

    def _replace_gathering(self) -> None:
        """What DeepSpeed does before and after its optimizer: empty all weights, gather the persistent ones."""
        zero = self._zero
        after_step = method_of(zero, "_post_step")
        zero.persistent_parameters = []
        replace_method(zero, "_partition_all_parameters", lambda: None)

        def then_publish(*args: Any, **kwargs: Any) -> None:
            after_step(*args, **kwargs)
            self.publish()

        replace_method(zero, "_post_step", then_publish)


def _partitions(parameters: Sequence[Any]) -> list[torch.Tensor]:
    """Of the only rank: all of each weight."""
    return [p.ds_tensor.data[: int(p.ds_numel)] for p in parameters]


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
