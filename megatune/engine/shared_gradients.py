"""Reduce-scatter of ZeRO-3 gradients through memory that the ranks of one host share.

gloo sends every gradient through a socket, and DeepSpeed copies it four times around that. Here a rank writes its
gradients into shared memory in their own precision, and each rank adds up its own piece of all of them, in fp32 and
in the order of the ranks.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from megatune.engine.replacing import method_of, replace_method
from megatune.engine.shared_memory import SharedMemory, profiled, share

_AVG_SCATTER = "_DeepSpeedZeroOptimizer_Stage3__avg_scatter_grads"
_ADDED_AT_A_TIME = 2**18
"""Elements: 1 MiB of sums, which stay in a core's cache until they are done."""


def keep_own_gradients(zero: Any) -> None:
    """For the only rank of a data-parallel group: its gradients are the mean, and all of them its own."""

    def own(parameters: list[nn.Parameter], communication: torch.dtype) -> list[torch.Tensor]:
        """As they are: they are cast where they are added up (stage3.py, `partition_grads`), one at a time."""
        del communication
        gradients = []
        for parameter in parameters:
            assert parameter.grad is not None
            gradients.append(parameter.grad.view(-1))
        return gradients

    _scatter_by(zero, own)


def _scatter_by(zero: Any, function: Callable[..., list[torch.Tensor]]) -> None:
    replace_method(zero, _AVG_SCATTER, function)
    zero.contiguous_gradients = False  # another copy, into a bucket
    for bucket in zero.ipg_buckets.values():
        bucket.buffer = None


class SharedGradients:
    """Takes the place of `__avg_scatter_grads` of DeepSpeed's stage-3 optimizer. Collective: every rank makes one."""

    def __init__(self, zero: Any, shared: SharedMemory, group: dist.ProcessGroup) -> None:
        self._shared = shared
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        # (writer, reader, elements)
        self._memory = shared.memory.view(zero.dtype).view(self._size, self._size, -1)
        self._usual = method_of(zero, _AVG_SCATTER)
        self._dtype = zero.gradient_accumulation_dtype
        _scatter_by(zero, self.average_and_scatter)

    @classmethod
    def install(
        cls, zero: Any, group: dist.ProcessGroup, *, num_params: int, largest: int
    ) -> "SharedGradients | None":
        """For buckets of at most `num_params` elements, and single weights of `largest`; None without shared memory."""
        size = dist.get_world_size(group)
        elements = min(num_params, zero.reduce_bucket_size + largest)
        pieces = -(-elements // size) + len(zero.param_dict)  # a rounding up for each weight
        shared = share(size * size * pieces * zero.dtype.itemsize, group)
        return None if shared is None else cls(zero, shared, group)

    def average_and_scatter(
        self, parameters: list[nn.Parameter], communication: torch.dtype
    ) -> list[torch.Tensor]:
        """The mean gradient of this rank's piece of each parameter, in the dtype gradients are accumulated in."""
        lengths = [-(-int(p.ds_numel) // self._size) for p in parameters]  # type: ignore[attr-defined]
        total = sum(lengths)
        if total > self._memory.shape[-1]:
            return self._usual(parameters, communication)  # type: ignore[no-any-return]
        with profiled("megatune::reduce"):
            return self._reduce(parameters, lengths)

    def _reduce(self, parameters: list[nn.Parameter], lengths: list[int]) -> list[torch.Tensor]:
        total = sum(lengths)
        self._write(parameters, lengths)
        self._shared.meet()
        mine = self._memory[:, self._rank, :total]
        added = torch.empty(total, dtype=self._dtype)
        # A part at a time: to add what is of another dtype, a CPU makes a copy of it first.
        for sums, terms in zip(
            added.split(_ADDED_AT_A_TIME), mine.split(_ADDED_AT_A_TIME, dim=1), strict=True
        ):
            sums.copy_(terms[0])
            for other in terms[1:]:
                sums += other
            sums.mul_(1 / self._size)
        self._shared.meet()  # before anybody writes the next gradients over these
        pieces = added.split(lengths)
        return [
            piece[: max(0, min(length, int(p.ds_numel) - self._rank * length))]  # type: ignore[attr-defined]
            for piece, length, p in zip(pieces, lengths, parameters, strict=True)
        ]

    def _write(self, parameters: list[nn.Parameter], lengths: list[int]) -> None:
        targets, sources, offset = [], [], 0
        for parameter, length in zip(parameters, lengths, strict=True):
            assert parameter.grad is not None
            for reader, piece in enumerate(parameter.grad.view(-1).split(length)):
                sources.append(piece)
                targets.append(self._memory[self._rank, reader, offset : offset + piece.numel()])
            offset += length
        torch._foreach_copy_(targets, sources)
