"""The training state of one ZeRO-3 rank as named flat tensors, and back.

DeepSpeed keeps the fp32 weights and the optimizer's moments of all parameters of a sub-group in one
flat tensor. A checkpoint must not know sub-groups (they depend on settings and on the layout), so the
state is cut into one flat piece a parameter: elements [rank * n, rank * n + n) of the flattened share
of this tensor-parallel rank, n = ceil(elements / data-parallel ranks). DeepSpeed pads the last pieces
to n with memory that it never sets; a piece here ends where the share does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from megatune.errors import CheckpointError

WEIGHT = "weight"
"""Kind of the fp32 weights; other kinds have the optimizer's own names (`exp_avg`, `momentum_buffer`)."""


@dataclass(frozen=True)
class RankState:
    """What one rank must keep to go on exactly."""

    tensors: dict[str, dict[str, torch.Tensor]]
    """Kind -> parameter name -> flat fp32 piece."""
    scalars: dict[str, Any]
    """JSON values: the loss scale, the optimizer's counters."""


class SavedState(Protocol):
    """The state of this rank as a checkpoint holds it, read piece by piece."""

    @property
    def kinds(self) -> Sequence[str]:
        """As in `RankState.tensors`, `WEIGHT` among them."""

    @property
    def names(self) -> frozenset[str]:
        """The parameters that every kind has."""

    @property
    def scalars(self) -> Mapping[str, Any]:
        """As in `RankState.scalars`."""

    def num_elements(self, name: str) -> int:
        """Elements of this rank's piece of a parameter, without padding."""

    def read_into(self, kind: str, name: str, piece: torch.Tensor) -> None:
        """Fill `piece`, flat fp32 in host memory, of `num_elements(name)`. Raises CheckpointError."""


def export_state(zero: Any, parameters: dict[str, nn.Parameter]) -> RankState:
    """The state held by `zero`, DeepSpeed's stage-3 optimizer; the tensors are views of it, not copies."""
    tensors: dict[str, dict[str, torch.Tensor]] = {WEIGHT: {}}
    counters: dict[str, Any] = {}
    for name, parameter in parameters.items():
        flat, start, count, _ = _place_of(zero, parameter)
        tensors[WEIGHT][name] = flat.detach().narrow(0, start, count)
        for kind, value in zero.optimizer.state.get(flat, {}).items():
            if torch.is_tensor(value) and value.shape == flat.shape:
                tensors.setdefault(kind, {})[name] = value.narrow(0, start, count)
            else:
                counters[kind] = {"value": float(value), "is_tensor": torch.is_tensor(value)}
    return RankState(tensors, {"optimizer": counters, "loss_scale": _loss_scale_state(zero)})


def import_state(zero: Any, parameters: dict[str, nn.Parameter], state: SavedState) -> None:
    """Put `state` into the optimizer of this rank alone; `refresh_weights` must follow on all ranks.

    Beyond the optimizer's own memory it needs at most one piece. Raises CheckpointError when the pieces
    are not those of this model on this layout, or cannot be read.
    """
    _check_pieces(zero, parameters, state)
    for name, parameter in parameters.items():
        flat, start, count, padded = _place_of(zero, parameter)
        slots = zero.optimizer.state[flat]
        for kind in state.kinds:
            slot = (
                flat.data if kind == WEIGHT else slots.setdefault(kind, torch.zeros_like(flat.data))
            ).narrow(0, start, padded)
            slot[count:] = 0
            _fill(slot[:count], state, kind, name)
        for kind, counter in state.scalars["optimizer"].items():
            slots[kind] = _counter(counter, flat.device)
    _catch_up(zero.optimizer, state.scalars["optimizer"])
    _restore_loss_scale(zero, state.scalars["loss_scale"])


def _fill(slot: torch.Tensor, state: SavedState, kind: str, name: str) -> None:
    if slot.device.type == "cpu" and slot.dtype == torch.float32:
        state.read_into(kind, name, slot)
        return
    piece = torch.empty(slot.numel(), dtype=torch.float32)
    state.read_into(kind, name, piece)
    slot.copy_(piece)


def _counter(saved: dict[str, Any], device: torch.device) -> torch.Tensor | int:
    """The optimizer's step count as it keeps it: torch's a tensor beside the weights, DeepSpeed's CPU Adam an int."""
    if saved["is_tensor"]:
        return torch.tensor(saved["value"], dtype=torch.float32, device=device)
    return int(saved["value"])


def _place_of(zero: Any, parameter: nn.Parameter) -> tuple[torch.Tensor, int, int, int]:
    """The flat tensor of a parameter's sub-group, where this rank's piece begins in it, the piece's
    elements without and with padding."""
    group, start, padded = zero.grad_position[zero.get_param_id(parameter)]
    data_rank = dist.get_rank(group=zero.dp_process_group)
    numel = int(parameter.ds_numel)  # type: ignore[attr-defined]  # DeepSpeed's: of this rank's share
    count = min(padded, max(0, numel - data_rank * padded))
    return zero.fp32_partitioned_groups_flat[group], start, count, padded


def _check_pieces(zero: Any, parameters: dict[str, nn.Parameter], state: SavedState) -> None:
    if state.names != parameters.keys():
        odd = sorted(state.names ^ parameters.keys())
        raise CheckpointError(f"{len(odd)} parameters differ from this model's, e.g. {', '.join(odd[:3])}.")
    for name, parameter in parameters.items():
        count = _place_of(zero, parameter)[2]
        if state.num_elements(name) != count:
            raise CheckpointError(
                f"{name} has {state.num_elements(name)} elements on this rank, the layout needs {count}."
            )


def _catch_up(optimizer: Any, counters: Mapping[str, Any]) -> None:
    """Bring DeepSpeed's compiled Adam, which offload uses, to the saved step.

    It keeps the bias correction as a running product, beta by beta; for a step that does not follow
    its last one it takes a power instead, which differs in the last bits. Some microseconds a step.
    """
    if not hasattr(optimizer, "ds_opt_adam") or "step" not in counters:
        return
    beta1, beta2 = optimizer.param_groups[0]["betas"]
    weight, gradient, first, second = torch.zeros(4, 1).unbind()
    for step in range(1, int(counters["step"]["value"]) + 1):
        optimizer.ds_opt_adam.adam_update(
            optimizer.opt_id, step, 0.0, beta1, beta2, 1.0, 0.0, True, weight, gradient, first, second
        )


def refresh_weights(zero: Any) -> None:
    """Copy the fp32 weights into the low-precision partitions, as DeepSpeed's own loading does.

    Collective: every rank calls it. Source:
    `_rigid_load_state_dict` and the end of `load_state_dict`, deepspeed/runtime/zero/stage3.py.
    """
    for group, master in enumerate(zero.fp32_partitioned_groups_flat):
        flat = zero.fp16_partitioned_groups_flat[group]
        flat.data.copy_(master.data)
        updated = zero.unflatten(flat, zero.fp16_partitioned_groups[group])
        for partition, value in zip(zero.fp16_partitioned_groups[group], updated, strict=True):
            partition.data = value.data
    if zero.persistent_parameters:
        zero.persistent_parameters[0].partition(zero.persistent_parameters)
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _loss_scale_state(zero: Any) -> dict[str, float]:
    """Counters of DeepSpeed's dynamic loss scaler; {} without fp16."""
    scaler = zero.loss_scaler
    names = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
    return {name: getattr(scaler, name) for name in names if hasattr(scaler, name)}


def _restore_loss_scale(zero: Any, saved: Mapping[str, float]) -> None:
    """Nothing where the kind of scaler has changed: the scale of fp16 would multiply the loss of bf16."""
    if saved.keys() != _loss_scale_state(zero).keys():
        return
    for name, value in saved.items():
        setattr(zero.loss_scaler, name, value)
