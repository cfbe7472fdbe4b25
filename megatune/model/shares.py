"""Put a weight that is cut over a tensor-parallel group together again."""

import math

import torch
import torch.distributed as dist

from megatune.model.collectives import TensorGroup
from megatune.plan.shards import Cut


def join_parts(parts: list[torch.Tensor], cut: Cut) -> torch.Tensor:
    """The whole weight from the parts of all ranks, in rank order."""
    shape = list(parts[0].shape)
    shape[cut.dim] = cut.size
    whole = parts[0].new_empty(shape)
    for rank, part in enumerate(parts):
        offset = 0
        for start, stop in cut.ranges(rank, len(parts)):
            whole.narrow(cut.dim, start, stop - start).copy_(part.narrow(cut.dim, offset, stop - start))
            offset += stop - start
    return whole


def part_shape(whole: tuple[int, ...], cut: Cut, rank: int, size: int) -> tuple[int, ...]:
    """The shape that `rank` of `size` holds of a weight of shape `whole`."""
    return (*whole[: cut.dim], cut.local_size(rank, size), *whole[cut.dim + 1 :])


def join_shares(local: torch.Tensor, cut: Cut, group: TensorGroup) -> torch.Tensor:
    """Every rank's share as one tensor, on the CPU of the group's first rank; an empty one on the others.

    Collective over the group: all its ranks send, and only the first needs room for the whole.
    """
    whole = (*local.shape[: cut.dim], cut.size, *local.shape[cut.dim + 1 :])
    shapes = [part_shape(whole, cut, rank, group.size) for rank in range(group.size)]
    widest = max(math.prod(shape) for shape in shapes)
    padded = local.new_zeros(widest)
    padded[: local.numel()] = local.flatten()
    gathered = [torch.empty_like(padded) for _ in shapes] if group.rank == 0 else None
    dist.gather(padded, gathered, group=group.process_group, group_dst=0)
    if gathered is None:
        return local.new_empty(0, device="cpu")
    parts = [flat[: math.prod(shape)].view(shape).cpu() for flat, shape in zip(gathered, shapes, strict=True)]
    return join_parts(parts, cut)
