"""The training loss: a sum of token cross-entropies, over a vocabulary that may lie on several ranks."""

from typing import Any

import torch

from megatune.model.collectives import TensorGroup
from megatune.tasks.labels import IGNORED

# fp32 copies of the logits are made for this many elements at a time (64 MiB).
_CHUNK_ELEMENTS = 2**24


def token_loss_sum(
    logits: torch.Tensor, labels: torch.Tensor, group: TensorGroup | None = None, first_token: int = 0
) -> torch.Tensor:
    """Sum of cross-entropy over the target tokens, in nats, as an fp32 scalar.

    logits: (..., vocabulary), or this rank's part of the vocabulary, which starts at id
    `first_token`, with the tensor-parallel `group` that holds the rest (Megatron-LM,
    arXiv:1909.08053, section 3). labels: (...), already shifted, -100 where no loss is taken.
    A sum, not a mean: micro-batches and ranks hold different numbers of targets (see
    `train_step`). Softmax and sum are computed in fp32; the gradient has the dtype of the logits
    and is made in chunks, so no fp32 copy of all logits ever exists.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    loss: torch.Tensor = _TokenLossSum.apply(  # type: ignore[no-untyped-call]
        flat, labels.reshape(-1), group or TensorGroup(), first_token
    )
    return loss


def token_losses(
    logits: torch.Tensor, labels: torch.Tensor, group: TensorGroup | None = None, first_token: int = 0
) -> torch.Tensor:
    """The losses that `token_loss_sum` adds up, shaped as `labels`; 0 where none is taken. Without a gradient."""
    flat, wanted = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    losses, *_ = _losses(flat, wanted, group or TensorGroup(), first_token)
    return losses.reshape(labels.shape)


def _losses(
    logits: torch.Tensor, labels: torch.Tensor, group: TensorGroup, first_token: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(losses, the label in this rank's part, whether it is there, log of the normalizer), (tokens,) each."""
    local = labels - first_token
    here = (local >= 0) & (local < logits.shape[-1]) & (labels != IGNORED)
    local = local.masked_fill(~here, 0)
    log_normalizer, target_logit = _normalizer(logits, local, here, group)
    return (log_normalizer - target_logit) * (labels != IGNORED), local, here, log_normalizer


class _TokenLossSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, group: TensorGroup, first_token: int
    ) -> torch.Tensor:
        losses, local, here, log_normalizer = _losses(logits, labels, group, first_token)
        ctx.save_for_backward(logits, local, here, labels != IGNORED, log_normalizer)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        logits, local, here, is_target, log_normalizer = ctx.saved_tensors
        grad = torch.empty_like(logits)
        scale = grad_loss.float() * is_target
        for rows in _chunks(logits):
            part = torch.sub(logits[rows].float(), log_normalizer[rows, None]).exp_()
            part.scatter_add_(1, local[rows, None], -here[rows, None].float())
            grad[rows] = part.mul_(scale[rows, None])
        return grad, None, None, None


def _normalizer(
    logits: torch.Tensor, local: torch.Tensor, here: torch.Tensor, group: TensorGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """log of the sum of exp over the whole vocabulary, and the target's logit; (tokens,) fp32 each."""
    largest = logits.new_empty(logits.shape[0], dtype=torch.float32)
    sums = torch.empty_like(largest)
    for rows in _chunks(logits):
        part = logits[rows].float()
        largest[rows] = part.amax(dim=-1)
        sums[rows] = torch.sub(part, largest[rows, None]).exp_().sum(dim=-1)
    overall = group.all_reduce(largest.clone(), op=torch.distributed.ReduceOp.MAX)
    target = logits.gather(1, local[:, None])[:, 0].float() * here
    both = group.all_reduce(torch.stack([sums * (largest - overall).exp(), target]))
    return overall + both[0].log(), both[1]


def _chunks(logits: torch.Tensor) -> list[slice]:
    step = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    return [slice(start, start + step) for start in range(0, logits.shape[0], step)]
