"""One process, plain torch, no DeepSpeed: the reference that every layout must equal."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatune.config.sections import TrainSection
from megatune.engine.base import StepOutcome
from megatune.engine.optimizers import make_optimizer, parameter_groups
from megatune.engine.world import World
from megatune.model.build import BuiltModel
from megatune.model.forward import TokenBatch, loss_of_batch, model_arguments


class PlainEngine:
    """Keeps fp32 master weights beside low-precision ones, as ZeRO does, and adds gradients in fp32."""

    def __init__(self, built: BuiltModel, world: World, train: TrainSection) -> None:
        self.built, self.world, self._train = built, world, train
        built.model.to(world.device)  # type: ignore[arg-type]
        built.model.train()
        self._parameters = dict(built.model.named_parameters())
        self._masters = {
            name: torch.nn.Parameter(p.detach().float().clone()) if p.dtype != torch.float32 else p
            for name, p in self._parameters.items()
        }
        groups = parameter_groups(self._masters.values(), train.weight_decay)
        self._optimizer = make_optimizer(groups, train)

    @property
    def description(self) -> str:
        dtype = next(iter(self._parameters.values())).dtype
        return f"plain torch, 1 process, {dtype} weights, {type(self._optimizer).__name__} on fp32 masters"

    def loss(self, batch: TokenBatch) -> torch.Tensor:
        return loss_of_batch(self.built.model, self.built, batch, self.world.device)

    def logits(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        device = self.world.device
        arguments = model_arguments(self.built.model, input_ids.to(device), position_ids.to(device))
        return self.built.model(**arguments).logits  # type: ignore[no-any-return]

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        del is_last  # only engines that reduce over ranks need to know
        loss.backward()
        for name, parameter in self._parameters.items():
            master = self._masters[name]
            if master is parameter or parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad + gradient
            parameter.grad = None

    def step(self, learning_rate: float, *, leave_out: bool = False) -> StepOutcome:
        if leave_out:
            self._optimizer.zero_grad()
            return StepOutcome(grad_norm=None, skipped=True)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        max_norm = self._train.max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self._masters.values(), max_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if self._masters[name] is not parameter:
                    parameter.copy_(self._masters[name])
        return StepOutcome(grad_norm=norm.item(), skipped=False)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self.built.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.built.model.train()

    def weights(self, *, master: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in (self._masters if master else self._parameters).items():
            whole = parameter.detach().cpu()
            yield name, whole.t().contiguous() if name in self.built.transposed else whole
