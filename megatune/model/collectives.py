"""Differentiable collectives of a tensor-parallel group. Every rank of the group calls each one.

The four region operators of Megatron-LM (arXiv:1909.08053, section 3) that a layout needs; a
group of one rank makes each of them the identity.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, ref

import torch
import torch.distributed as dist


@dataclass
class TensorGroup:
    """The ranks that hold one copy of the model between them."""

    rank: int = 0
    size: int = 1
    process_group: dist.ProcessGroup | None = None
    own_sum: Callable[[torch.Tensor], bool] | None = field(default=None, repr=False)
    """A faster sum in place, the same bits on all ranks; False: not of such a tensor, on any rank."""
    _entered: tuple["ReferenceType[torch.Tensor]", "ReferenceType[torch.Tensor]"] | None = field(
        default=None, repr=False
    )

    def gather_objects(self, value: Any) -> list[Any]:
        """`value` of every rank of the group, in rank order. Collective."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.process_group)
        return found

    def enter(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` unchanged; its gradient is summed over the group.

        Query, key and value projections read the same tensor: they share one entry, so the
        backward pass makes one all-reduce for the three. Weak references: the entry must not
        keep an activation alive that checkpointing has dropped.
        """
        if self.size == 1:
            return tensor
        if self._entered is not None:
            source, known = self._entered[0](), self._entered[1]()
            if source is tensor and known is not None and known.requires_grad == torch.is_grad_enabled():
                return known
        entered: torch.Tensor = _Enter.apply(tensor, self)  # type: ignore[no-untyped-call]
        self._entered = (ref(tensor), ref(entered))
        return entered

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the group; the gradient passes unchanged."""
        if self.size == 1:
            return tensor
        total: torch.Tensor = _Sum.apply(tensor, self)  # type: ignore[no-untyped-call]
        return total

    def all_reduce(
        self, tensor: torch.Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
    ) -> torch.Tensor:
        """In-place reduction without gradient."""
        if self.size == 1 or (op == dist.ReduceOp.SUM and self.own_sum is not None and self.own_sum(tensor)):
            return tensor
        dist.all_reduce(tensor, op=op, group=self.process_group)
        return tensor

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The ranks' tensors, all of one shape, along a new first dimension; without gradient."""
        if self.size == 1:
            return tensor[None]
        parts = tensor.new_empty(self.size, *tensor.shape)
        dist.all_gather(list(parts), tensor.contiguous(), group=self.process_group)
        return parts

    def gather_last(self, tensor: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """The ranks' last dimensions side by side, `sizes[rank]` wide each; without gradient."""
        if self.size == 1:
            return tensor
        widest = max(sizes)
        padded = torch.nn.functional.pad(tensor, (0, widest - tensor.shape[-1])).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.process_group)
        return torch.cat([part[..., :size] for part, size in zip(parts, sizes, strict=True)], dim=-1)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: TensorGroup) -> torch.Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        # In place: only Linears read an entered tensor, and the gradient a matmul returns is nobody else's.
        total = grad.contiguous()
        return ctx.group.all_reduce(total), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: TensorGroup) -> torch.Tensor:
        total = tensor.contiguous()
        if total is tensor:
            ctx.mark_dirty(tensor)
        return group.all_reduce(total)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ARG004
        return grad, None
