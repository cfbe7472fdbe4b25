"""The optimizers of the run file, as torch and DeepSpeed implement them."""

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import nn

from megatune.config.sections import TrainSection
from megatune.plan.blocks import is_decayed

ParameterGroups = list[dict[str, Any]]


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], weight_decay: float, *, unread: Container[str]
) -> ParameterGroups:
    """Matrices with weight decay, norms and biases without, of whatever shape: the usual split of the field.

    Without it too are `unread` parameters, names of what no row of text reaches: decay alone would move them.
    A ZeRO-3 parameter is already emptied; `ds_shape` remembers its shape.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            is_matrix = is_decayed(name, len(getattr(parameter, "ds_shape", parameter.shape)))
            (decayed if is_matrix and name not in unread else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(
    groups: ParameterGroups, train: TrainSection, *, on_host: bool = False
) -> torch.optim.Optimizer:
    """The optimizer named by `train.optimizer`.

    `on_host`: its states live in host memory beside a GPU, where DeepSpeed's vectorised Adam is
    several times faster than torch's. Fused variants elsewhere: one pass over the memory.
    """
    if train.optimizer in ("adamw", "adam"):
        options: dict[str, Any] = {
            "lr": train.learning_rate,
            "betas": (train.adam_beta1, train.adam_beta2),
            "eps": train.adam_epsilon,
        }
        if on_host:
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            return DeepSpeedCPUAdam(groups, adamw_mode=train.optimizer == "adamw", **options)  # type: ignore[no-any-return]
        kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
        return kind(groups, fused=True, **options)
    if train.optimizer == "adagrad":
        # One group: DeepSpeed builds Adagrad anew from its defaults (stage3.py, initialize_optimizer_states).
        everything = [parameter for group in groups for parameter in group["params"]]
        return torch.optim.Adagrad(everything, lr=train.learning_rate, weight_decay=train.weight_decay)
    return torch.optim.SGD(groups, lr=train.learning_rate, momentum=train.momentum, fused=True)


def name_of_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """Its class, and whether one kernel updates all its weights."""
    return f"{'fused ' if optimizer.defaults.get('fused') else ''}{type(optimizer).__name__}"
