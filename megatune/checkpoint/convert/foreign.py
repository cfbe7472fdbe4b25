"""What is known of another program's training state, before anything of it is converted."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from megatune.errors import ConvertError

KINDS = {"fp32": "weight", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
"""A universal checkpoint's file of a parameter -> the kind in a checkpoint of megatune."""
_OPTIMIZERS = {
    frozenset({"exp_avg", "exp_avg_sq"}): "adamw",
    frozenset({"momentum_buffer"}): "sgd",
    frozenset({"sum"}): "adagrad",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A training state without its tensors."""

    folder: Path
    step: int
    """Optimizer steps done, skipped ones included."""
    shapes: Mapping[str, tuple[int, ...]]
    """Trained parameter -> shape under the other program's name; one dimension where only the size is known."""
    frozen: Mapping[str, tuple[int, ...]]
    """Parameters that were not trained; no optimizer state exists of them."""
    kinds: tuple[str, ...]
    """Megatune's: `weight` and the optimizer's own."""
    optimizer: str
    """As `train.optimizer` names it."""
    counters: Mapping[str, Any]
    """The optimizer's, as in a rank's JSON file."""
    loss_scale: Mapping[str, float]
    data_parallel: int
    """How many ranks the converted checkpoint is for: any other number may go on with it."""


class ForeignState(Protocol):
    """A training state that can be read parameter by parameter."""

    @property
    def facts(self) -> Facts:
        """Read when the state was opened."""

    def read(self, kind: str, name: str) -> torch.Tensor:
        """A whole flat fp32 tensor of a trained parameter."""

    def read_frozen(self, name: str) -> torch.Tensor:
        """The whole flat weight of a parameter that was not trained."""


def optimizer_of(folder: Path, kinds: frozenset[str], groups: Any) -> str:
    """The optimizer that keeps `kinds`. Raises ConvertError for one that megatune has not."""
    found = _OPTIMIZERS.get(kinds)
    if found is None:
        raise ConvertError(
            f"{folder}: the optimizer keeps {', '.join(sorted(kinds)) or 'no state'} for each parameter. megatune "
            "goes on with Adam(W) (exp_avg, exp_avg_sq), SGD with momentum (momentum_buffer) and Adagrad (sum)."
        )
    first = groups[0] if isinstance(groups, list) and groups and isinstance(groups[0], dict) else {}
    return "adam" if found == "adamw" and first.get("decoupled_weight_decay") is False else found


def counter(value: Any) -> dict[str, Any]:
    """One of the optimizer's counters, as a rank's JSON file holds it."""
    return {"value": float(value)}


def loss_scale_of(scaler: Any) -> dict[str, float]:
    """The dynamic loss scale of fp16; {} without one."""
    values = vars(scaler) if hasattr(scaler, "__dict__") else {}
    names = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
    return {name: values[name] for name in names if isinstance(values.get(name), (int, float))}
