"""Plain torch, no DeepSpeed. In one process it is the reference that every layout must equal; over
several ranks it is ZeRO stage 0: every data-parallel rank holds weights, gradients and optimizer whole.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext

import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from megatune.config.sections import TrainSection
from megatune.engine.accounting import HeldBytes, num_bytes, plain_held
from megatune.engine.base import StepOutcome
from megatune.engine.inference import InferenceEngine
from megatune.engine.masters import Piece
from megatune.engine.optimizers import make_optimizer, name_of_optimizer, parameter_groups
from megatune.engine.state import RankState, SavedState, export_state, load_on_all_ranks
from megatune.engine.whole import whole_weights
from megatune.engine.world import World
from megatune.model.build import BuiltModel
from megatune.model.head_loss import HeadLoss
from megatune.plan.shards import Division, divide_evenly

_BUCKET_ELEMENTS = 2**25
"""Gradients in one all-reduce: 128 MiB. A larger weight goes by itself."""


class PlainEngine(InferenceEngine):
    """Keeps fp32 master weights beside low-precision ones, as ZeRO does, and adds gradients in fp32."""

    def __init__(
        self,
        built: BuiltModel,
        world: World,
        train: TrainSection,
        *,
        loss_scaler: DynamicLossScaler | None = None,
        head_loss: HeadLoss | None = None,
    ) -> None:
        """`loss_scaler`: for fp16, whose gradients would vanish without. Without `head_loss` the loss comes
        from whole logits: the reference takes it so."""
        super().__init__(built, world, head_loss)
        self._train, self.loss_scaler = train, loss_scaler
        built.model.train()
        self._parameters = dict(built.model.named_parameters())
        self._masters = {
            name: torch.nn.Parameter(p.detach().float().clone()) if p.dtype != torch.float32 else p
            for name, p in self._parameters.items()
        }
        self._gradient_bytes: int | None = None
        groups = parameter_groups(self._masters, train.weight_decay, unread=built.unread)
        self.optimizer = make_optimizer(groups, train)

    @property
    def description(self) -> str:
        dtype, world = next(iter(self._parameters.values())).dtype, self.world
        ranks = (
            "1 process"
            if world.size == 1
            else f"ZeRO stage 0 (nothing divided) over dp={world.data_parallel} x tp={world.tensor_parallel}"
        )
        return f"plain torch, {ranks}, {dtype} weights, {name_of_optimizer(self.optimizer)} on fp32 masters"

    @property
    def divisions(self) -> dict[str, tuple[Division, ...]] | None:
        return None

    @property
    def is_replicated(self) -> bool:
        return True

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        (loss if self.loss_scaler is None else loss * self.loss_scaler.cur_scale).backward()
        for name, parameter in self._parameters.items():
            master = self._masters[name]
            if master is parameter or parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None
        if is_last:
            self._sum_gradients_over_data()

    def step(self, learning_rate: float, *, leave_out: bool = False) -> StepOutcome:
        self._gradient_bytes = self._gradient_bytes or num_bytes(self._gradients().values())
        norm = None if leave_out else self._unscaled_norm()
        length = None if norm is None else norm.item()
        # As DeepSpeed's optimizers: one step by a gradient that is not finite ends a model.
        if norm is None or length is None or not math.isfinite(length):
            self.optimizer.zero_grad()
            return StepOutcome(grad_norm=None, skipped=True)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        max_norm = self._train.max_grad_norm or float("inf")
        torch.nn.utils.clip_grads_with_norm_(self._masters.values(), max_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.refresh()
        return StepOutcome(grad_norm=length, skipped=False)

    def weights(self, *, master: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        held = self._masters if master else self._parameters
        shares = ((name, nullcontext(parameter.detach())) for name, parameter in held.items())
        yield from whole_weights(shares, self.built, self.world)

    def held_bytes(self) -> HeldBytes | None:
        if self._gradient_bytes is None:
            return None
        return plain_held(self._parameters, self._masters, self.optimizer, self._gradient_bytes)

    def state(self) -> RankState:
        """This rank's part of the training state; its tensors are views that the next step changes."""
        return export_state(self, self._parameters)

    def load_state(self, state: SavedState) -> None:
        """Go on from `state`, which holds everything. Collective. Raises CheckpointError on all ranks."""
        load_on_all_ranks(self, self._parameters, state, self.world)

    # What export and import ask for: see `Masters`.
    def saved(self, name: str) -> Piece:
        """An even part of what all data-parallel ranks hold alike, so that each writes as much."""
        master = self._masters[name]
        division = divide_evenly(master.numel(), self.world.data_parallel)
        start, stop = division.piece(self.world.data_rank, master.numel())
        return Piece(master, start, stop - start, stop - start)

    def held(self, name: str) -> Piece:
        master = self._masters[name]
        return Piece(master, 0, master.numel(), master.numel())

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the masters to the weights that compute."""
        for name, parameter in self._parameters.items():
            if self._masters[name] is not parameter:
                parameter.copy_(self._masters[name])

    def _sum_gradients_over_data(self) -> None:
        """Collective. Every rank has a gradient for the same weights: those that the model uses."""
        if self.world.data_parallel == 1:
            return
        bucket: list[torch.Tensor] = []
        for gradient in self._gradients().values():
            if bucket and sum(one.numel() for one in bucket) + gradient.numel() > _BUCKET_ELEMENTS:
                self._sum_bucket(bucket)
                bucket = []
            bucket.append(gradient)
        if bucket:
            self._sum_bucket(bucket)

    def _sum_bucket(self, gradients: list[torch.Tensor]) -> None:
        flat = self.world.sum_over_data(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def _gradients(self) -> dict[str, torch.Tensor]:
        return {name: master.grad for name, master in self._masters.items() if master.grad is not None}

    def _unscaled_norm(self) -> torch.Tensor | None:
        """Norm of the whole model's gradient, which is divided by the loss scale; None after an overflow.

        Collective: a weight that every tensor-parallel rank holds whole counts once.
        """
        gradients, group = self._gradients(), self.world.tensor_group
        counted = [g for name, g in gradients.items() if name in self.built.cuts or group.rank == 0]
        norms = torch._foreach_norm(counted) if counted else ()
        norm = torch.stack(norms).norm() if norms else torch.zeros((), device=self.world.device)
        if group.size > 1:
            square = norm.double() ** 2
            dist.all_reduce(square, group=group.process_group)
            norm = square.sqrt().float()
        if self.loss_scaler is None:
            return norm
        scale, overflowed = self.loss_scaler.cur_scale, not bool(torch.isfinite(norm))
        self.loss_scaler.update_scale(overflowed)
        if overflowed:
            return None
        torch._foreach_div_(list(gradients.values()), scale)
        unscaled: torch.Tensor = norm / scale
        return unscaled
