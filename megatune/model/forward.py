"""What a batch becomes when the model is called, and which logits are computed at all."""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import nn

from megatune.model.build import BuiltModel
from megatune.model.heads import head_loss_sum
from megatune.model.loss import IGNORED, token_loss_sum


class TokenBatch(Protocol):
    """The tensors of a micro-batch, (batch, seq) each."""

    @property
    def input_ids(self) -> torch.Tensor: ...
    @property
    def position_ids(self) -> torch.Tensor: ...
    @property
    def labels(self) -> torch.Tensor: ...


def loss_of_batch(call: Any, built: BuiltModel, batch: TokenBatch, device: torch.device) -> torch.Tensor:
    """Sum of the token losses of `batch`, through `call` (the model or the engine around it).

    The head runs on target positions only: prompts and padding have no loss, and the vocabulary
    makes the head the widest layer of a small model.
    """
    labels = batch.labels.to(device)
    spec = built.source.head
    if spec is not None:
        inputs = model_arguments(built.model, batch.input_ids.to(device), batch.position_ids.to(device))
        return head_loss_sum(head_logits(call(**inputs)), labels, spec)
    kept = _target_positions(labels)
    arguments = model_arguments(built.model, batch.input_ids.to(device), batch.position_ids.to(device))
    if accepts(built.model, "logits_to_keep"):
        arguments["logits_to_keep"] = kept
        labels = labels[:, kept]
    logits = call(**arguments).logits
    group = getattr(built.head, "group", None)
    return token_loss_sum(logits, labels, group, built.first_token)


def head_logits(output: Any) -> torch.Tensor:
    """The scores of a classifier head; of spans (batch, seq, 2)."""
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    return output.logits  # type: ignore[no-any-return]


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
