"""What a batch becomes when the model is called, and which logits are computed at all."""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import nn

from megatune.model.build import BuiltModel
from megatune.model.collectives import TensorGroup
from megatune.model.head_loss import HeadLoss, HeadSettings, post_of
from megatune.model.heads import head_loss_sum
from megatune.model.loss import token_loss_sum, token_losses
from megatune.tasks.labels import IGNORED


class TokenBatch(Protocol):
    """The tensors of a micro-batch, (batch, seq) each."""

    @property
    def input_ids(self) -> torch.Tensor: ...
    @property
    def position_ids(self) -> torch.Tensor: ...
    @property
    def labels(self) -> torch.Tensor: ...


def loss_of_batch(
    call: Callable[..., Any],
    built: BuiltModel,
    batch: TokenBatch,
    device: torch.device,
    head_loss: HeadLoss | None = None,
) -> torch.Tensor:
    """Sum of the token losses of `batch`, through `call` (the model or the engine around it).

    With `head_loss` it is taken chunk by chunk inside the head; else from the logits of the whole batch.
    The head runs on target positions only: prompts and padding have no loss, and the vocabulary
    makes the head the widest layer of a small model.
    """
    arguments = row_arguments(built, batch.input_ids.to(device), batch.position_ids.to(device))
    if head_loss is not None:
        return head_loss.loss_of(call, arguments, batch.labels)
    labels = batch.labels.to(device)
    spec = built.source.head
    if spec is not None:
        return head_loss_sum(head_logits(call(**arguments)), labels, spec)
    return token_loss_sum(*_logits_at_targets(call, built, arguments, labels))


def row_losses_of_batch(
    call: Callable[..., Any],
    built: BuiltModel,
    batch: TokenBatch,
    device: torch.device,
    head_loss: HeadLoss | None = None,
) -> torch.Tensor:
    """The same for each row, (batch,) in fp32, of a language-model head; without a gradient."""
    arguments = row_arguments(built, batch.input_ids.to(device), batch.position_ids.to(device))
    if head_loss is not None:
        return head_loss.token_losses_of(call, arguments, batch.labels).sum(dim=1)
    return token_losses(*_logits_at_targets(call, built, arguments, batch.labels.to(device))).sum(dim=1)


def _logits_at_targets(
    call: Callable[..., Any], built: BuiltModel, arguments: dict[str, Any], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Any, int]:
    """What `token_loss_sum` takes."""
    kept = _target_positions(labels)
    if accepts(built.model, "logits_to_keep"):
        arguments["logits_to_keep"] = kept
        labels = labels[:, kept]
    logits = call(**arguments).logits
    return logits, labels, getattr(built.head, "group", None), built.first_token


def head_logits(output: Any) -> torch.Tensor:
    """The scores of a classifier head; of spans (batch, seq, 2)."""
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    return output.logits  # type: ignore[no-any-return]


def make_head_loss(built: BuiltModel, *, widen: bool) -> HeadLoss | None:
    """Prepare the head of `built` to give the loss; None for one that is not over a vocabulary.

    After the engine has put its hooks on the model.
    """
    if built.source.head is not None:
        return None
    head = built.head
    settings = HeadSettings(
        group=getattr(head, "group", TensorGroup()),
        first_token=built.first_token,
        post=post_of(built.source.config_dict()),
        widen=widen,
    )
    return HeadLoss(head, settings)


def row_arguments(built: BuiltModel, input_ids: torch.Tensor, position_ids: torch.Tensor) -> dict[str, Any]:
    """The arguments for rows of documents, (batch, seq), which do not see each other."""
    arguments = model_arguments(built.model, input_ids, position_ids)
    if built.masks.are_given:
        arguments["attention_mask"] = built.masks.of(position_ids, built.model.dtype)
    return arguments


def model_arguments(model: nn.Module, input_ids: torch.Tensor, position_ids: torch.Tensor) -> dict[str, Any]:
    """The arguments for whole sequences: no attention mask and no cache.

    transformers finds packed documents by positions that restart only when there is neither a mask
    nor a cache; with either, documents would read each other without an error.
    """
    arguments: dict[str, Any] = {"input_ids": input_ids}
    if accepts(model, "use_cache"):  # where it is no argument, the configuration says so already
        arguments["use_cache"] = False
    if accepts(model, "position_ids"):
        arguments["position_ids"] = position_ids
    return arguments


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the forward of `model` has this argument."""
    # The class is asked: an engine may have put a wrapper of another signature on the instance.
    return argument in _parameters_of(type(model).forward)


@lru_cache
def _parameters_of(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _target_positions(labels: torch.Tensor) -> torch.Tensor:
    """Positions where some row has a target; the first one when none has, so that the head always runs."""
    positions = (labels != IGNORED).any(dim=0).nonzero()[:, 0]
    return positions if positions.numel() else positions.new_zeros(1)
