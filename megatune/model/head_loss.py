"""The loss taken inside the output head, some tokens at a time, so that no whole logits ever exist.

A vocabulary of 128 k makes logits and their gradient the largest tensors of a step. Here the logits of a chunk
become loss, gradient of the hidden states and gradient of the weight at once, in the forward pass: the loss is a
plain sum, so backward has only to scale what is there. Nothing is computed twice and nothing is approximated.

It happens inside the head because there ZeRO-3 has gathered the weight.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from megatune.model.collectives import TensorGroup
from megatune.plan.activations import loss_chunk_rows
from megatune.tasks.labels import IGNORED

_ADDED_ROWS = 2**13
"""Of a weight's gradient: a few launches on a GPU, which needs no copy."""


@dataclass(frozen=True)
class Post:
    """What a model does to the logits of its head: scale them, then bend them below a cap."""

    scale: float = 1.0
    softcap: float | None = None
    """cap * tanh(logits / cap), as in Gemma 2."""

    def apply_(self, logits: torch.Tensor) -> torch.Tensor | None:
        """In place. The derivative where it is not 1 everywhere."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is None:
            return None if self.scale == 1.0 else torch.full_like(logits[:, :1], self.scale)
        logits.div_(self.softcap).tanh_()
        slope = (1 - logits.square()).mul_(self.scale)
        logits.mul_(self.softcap)
        return slope


_SCALES = {
    "cohere": ("logit_scale", 1),
    "granite": ("logits_scaling", -1),
    "hyperclovax": ("logits_scaling", 1),
    "falcon_h1": ("lm_head_multiplier", 1),
}
"""First letters of a model type -> the key that logits are multiplied by (1) or divided by (-1)."""


def post_of(config: Mapping[str, Any]) -> Post:
    """From config.json, by the modeling files of transformers 5.24: one row a key that scales, one that caps."""
    text = config.get("text_config") or config
    model_type = str(text.get("model_type", ""))
    scale = 1.0
    for kind, (key, power) in _SCALES.items():
        if model_type.startswith(kind) and text.get(key):
            scale = float(text[key]) ** power
    softcap = text.get("logits_soft_cap" if model_type == "recurrent_gemma" else "final_logit_softcapping")
    return Post(scale=scale, softcap=softcap)


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """What is the same for every batch."""

    group: TensorGroup
    """The ranks that share the vocabulary."""
    first_token: int
    """Vocabulary id of this rank's first logit."""
    post: Post = Post()
    widen: bool = False
    """Multiply bf16 as fp32: see widened.py."""
    chunk_rows: int | None = None
    """Tokens at a time; None: as many as the planner counts on."""


def chunked_loss_sum(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    settings: HeadSettings,
) -> torch.Tensor:
    """Sum of cross-entropy over the target tokens, in nats, as an fp32 scalar.

    hidden: (..., hidden). labels: (...), already shifted, on the CPU or beside `hidden`; -100 where no loss is
    taken: those tokens never reach the head. weight: (this rank's vocabulary, hidden). Softmax, sums and the
    gradient of the weight are fp32. Collective over the tensor-parallel group: one small exchange a chunk.
    """
    flat, targets, _ = _at_targets(hidden, labels)
    loss: torch.Tensor = _HeadLossSum.apply(  # type: ignore[no-untyped-call]
        settings.group.enter(flat), weight, bias, targets, settings, torch.is_grad_enabled()
    )
    return loss


@torch.no_grad()
def chunked_token_losses(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    settings: HeadSettings,
) -> torch.Tensor:
    """The losses that `chunked_loss_sum` adds up, shaped as `labels`, in fp32; 0 where none is taken. No gradient."""
    flat, targets, rows = _at_targets(hidden, labels)
    flat, weight, bias = _widened(flat, weight, bias, settings)
    losses = flat.new_zeros(labels.numel(), dtype=torch.float32)
    for chunk in _chunks(len(targets), weight, settings):
        losses[rows[chunk]], _ = _chunk(flat[chunk], weight, bias, targets[chunk], settings)
    return losses.reshape(labels.shape)


def _at_targets(
    hidden: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states that have a target, (tokens, hidden), those targets, and where they are; beside `hidden`."""
    labels = labels.reshape(-1)
    rows = (labels != IGNORED).nonzero()[:, 0]
    flat = hidden.reshape(-1, hidden.shape[-1])
    targets = labels[rows].to(hidden.device, non_blocking=True)
    is_whole = len(rows) == len(labels)
    rows = rows.to(hidden.device, non_blocking=True)
    return flat if is_whole else flat[rows], targets, rows


def _widened(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, settings: HeadSettings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    if not settings.widen:
        return hidden, weight, bias
    return hidden.float(), weight.float(), None if bias is None else bias.float()


def _chunks(num_tokens: int, weight: torch.Tensor, settings: HeadSettings) -> Iterator[slice]:
    """Which tokens are taken at a time."""
    step = settings.chunk_rows or loss_chunk_rows(weight.shape[0], on_cpu=weight.device.type == "cpu")
    for start in range(0, num_tokens, step):
        yield slice(start, start + step)


class _HeadLossSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        settings: HeadSettings,
        needs_gradient: bool,
    ) -> torch.Tensor:
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        wanted = [needs_gradient and needed for needed in ctx.needs_input_grad[:3]]
        hidden, weight, bias = _widened(hidden, weight, bias, settings)
        loss = hidden.new_zeros((), dtype=torch.float32)
        gradients = [
            _sum_for(tensor) if want else None
            for tensor, want in zip((hidden, weight, bias), wanted, strict=True)
        ]
        for rows in _chunks(len(targets), weight, settings):
            losses, logits_grad = _chunk(hidden[rows], weight, bias, targets[rows], settings)
            loss += losses.sum()
            if any(wanted):
                _add_gradients(gradients, logits_grad.to(weight.dtype), hidden[rows], weight, rows)
            del logits_grad  # or two chunks would be alive at once
        ctx.gradients = gradients
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Scaled in place and handed on: a second backward through the same loss would scale them again.
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [
            None if gradient is None else gradient.mul_(grad_loss.float()).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


def _sum_for(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else torch.zeros_like(tensor, dtype=torch.float32)


def _chunk(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    settings: HeadSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of some tokens, (tokens,), and the gradient of their sum to the logits, (tokens, this rank's
    vocabulary); fp32 both."""
    logits = torch.addmm(bias, hidden, weight.t()) if bias is not None else hidden @ weight.t()
    logits = logits.float()
    slope = settings.post.apply_(logits)
    local = targets - settings.first_token
    here = (local >= 0) & (local < logits.shape[-1])
    local.masked_fill_(~here, 0)
    target_logit = logits.gather(1, local[:, None])[:, 0] * here
    largest = logits.amax(dim=-1)
    softmax = logits.sub_(largest[:, None]).exp_()
    log_normalizer, target_logit = _over_ranks(largest, softmax.sum(dim=-1), target_logit, settings.group)
    softmax.mul_((largest - log_normalizer).exp_()[:, None])
    softmax.scatter_add_(1, local[:, None], -here[:, None].float())
    return log_normalizer - target_logit, softmax if slope is None else softmax.mul_(slope)


def _over_ranks(
    largest: torch.Tensor, sums: torch.Tensor, target_logit: torch.Tensor, group: TensorGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the whole vocabulary: log of the sum of exp, and the target's logit. All are (tokens,) fp32."""
    every = group.gather(torch.stack([largest, sums, target_logit]))  # (ranks, 3, tokens)
    overall = every[:, 0].amax(dim=0)
    total = (every[:, 1] * (every[:, 0] - overall).exp_()).sum(dim=0)
    return overall + total.log_(), every[:, 2].sum(dim=0)


def _add_gradients(
    gradients: list[torch.Tensor | None],
    logits_grad: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rows: slice,
) -> None:
    hidden_grad, weight_grad, bias_grad = gradients
    if hidden_grad is not None:
        hidden_grad[rows] = logits_grad @ weight
    if weight_grad is not None and weight.dtype == torch.float32:
        weight_grad.addmm_(logits_grad.t(), hidden)
    elif weight_grad is not None:
        product = logits_grad.t() @ hidden
        # Some rows at a time: to add bf16 to fp32, a CPU makes a copy in fp32 first.
        for sums, part in zip(weight_grad.split(_ADDED_ROWS), product.split(_ADDED_ROWS), strict=True):
            sums += part
    if bias_grad is not None:
        bias_grad += logits_grad.sum(dim=0, dtype=torch.float32)


class HeadLoss:
    """Has the output head of a model give the loss instead of logits, while a batch is being trained on."""

    def __init__(self, head: nn.Module, settings: HeadSettings) -> None:
        self._head, self._settings = head, settings
        self._labels: torch.Tensor | None = None
        self._take: Callable[..., torch.Tensor] = chunked_loss_sum
        self._loss: torch.Tensor | None = None
        self._usual: Callable[[torch.Tensor], torch.Tensor] = head.forward
        head.forward = self._forward
        # After the engine's own hooks: what they return has the node that gathers the weight for backward.
        head.register_forward_hook(self._keep)

    def loss_of(
        self, call: Callable[..., Any], arguments: dict[str, Any], labels: torch.Tensor
    ) -> torch.Tensor:
        """Sum of the token losses of a batch, by way of `call(**arguments)`, the model or the engine around it."""
        return self._taken(chunked_loss_sum, call, arguments, labels)

    def token_losses_of(
        self, call: Callable[..., Any], arguments: dict[str, Any], labels: torch.Tensor
    ) -> torch.Tensor:
        """The same for each token, shaped as `labels`, without a gradient."""
        return self._taken(chunked_token_losses, call, arguments, labels)

    def _taken(
        self,
        take: Callable[..., torch.Tensor],
        call: Callable[..., Any],
        arguments: dict[str, Any],
        labels: torch.Tensor,
    ) -> torch.Tensor:
        self._take, self._labels = take, labels
        try:
            call(**arguments)
            assert self._loss is not None, "the model ran without its output head"
            return self._loss
        finally:
            self._labels = self._loss = None

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._labels is None:
            return self._usual(hidden)
        head: Any = self._head
        return self._take(hidden, head.weight, head.bias, self._labels, self._settings)

    def _keep(self, _: nn.Module, __: tuple[Any, ...], output: torch.Tensor) -> None:
        if self._labels is not None:
            # The model may scale what it takes for logits, but nobody reads its answer.
            self._loss = output
