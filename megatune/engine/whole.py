"""Whole weights on the first rank, out of the shares of its tensor-parallel group."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import torch

from megatune.engine.world import World
from megatune.model.build import BuiltModel
from megatune.model.shares import join_shares


def whole_weights(
    shares: Iterable[tuple[str, AbstractContextManager[torch.Tensor]]], built: BuiltModel, world: World
) -> Iterator[tuple[str, torch.Tensor]]:
    """As `Engine.weights`, from this rank's share of each weight. Collective: every rank calls it."""
    for name, share in shares:
        with share as local:
            whole = _join(name, local, built, world)
        is_turned = whole.dim() == 2 and name in built.transposed
        yield name, whole.t().contiguous() if is_turned else whole


def _join(name: str, local: torch.Tensor, built: BuiltModel, world: World) -> torch.Tensor:
    """One tensor on rank 0; an empty one elsewhere."""
    if world.data_rank != 0:
        return local.new_empty(0, device="cpu")  # all groups hold the same
    cut, group = built.cuts.get(name), world.tensor_group
    if cut is not None and group.size > 1:
        return join_shares(local, cut, group)
    return local.to("cpu", copy=True) if world.is_first else local.new_empty(0, device="cpu")
