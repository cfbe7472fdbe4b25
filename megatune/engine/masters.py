"""Where the fp32 weights of a rank lie inside DeepSpeed's ZeRO optimizers, stage by stage.

Three of DeepSpeed's classes keep them, each in its own way: stage 3 divides every parameter by itself;
stages 1 and 2 lay the parameters of a group side by side and divide the whole, in one class for bf16
under stage 1 and in another for the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from megatune.plan.shards import Division


@dataclass(frozen=True)
class Piece:
    """A stretch of one parameter inside a tensor that the optimizer steps."""

    owner: torch.Tensor
    """What the optimizer's state is kept under."""
    start: int
    """Index into the flattened `owner`."""
    count: int
    """Elements, without padding."""
    padded: int
    """Elements, with it."""


class Masters(Protocol):
    """The fp32 weights of this rank and what steps them."""

    @property
    def optimizer(self) -> Any:
        """torch's or DeepSpeed's own; its state is keyed by the owners of pieces."""

    @property
    def loss_scaler(self) -> Any:
        """DeepSpeed's scaler, or None."""

    def saved(self, name: str) -> Piece:
        """The stretch of a parameter that this rank saves: no element is two data-parallel ranks'."""

    def held(self, name: str) -> Piece:
        """The stretch that this rank must be given to go on."""

    def refresh(self) -> None:
        """Bring the weights that compute up to the fp32 ones. Collective: every rank calls it."""


class StageThree:
    """DeepSpeedZeroOptimizer_Stage3: sub-groups of parameters, each divided and padded by itself."""

    def __init__(self, zero: Any, parameters: Mapping[str, nn.Parameter]) -> None:
        self._zero, self._parameters = zero, parameters

    @property
    def optimizer(self) -> Any:
        return self._zero.optimizer

    @property
    def loss_scaler(self) -> Any:
        return self._zero.loss_scaler

    def saved(self, name: str) -> Piece:
        zero, parameter = self._zero, self._parameters[name]
        group, start, padded = zero.grad_position[zero.get_param_id(parameter)]
        data_rank = dist.get_rank(group=zero.dp_process_group)
        numel = int(parameter.ds_numel)  # type: ignore[attr-defined]  # DeepSpeed's: of this rank's share
        count = min(padded, max(0, numel - data_rank * padded))
        return Piece(zero.fp32_partitioned_groups_flat[group], start, count, padded)

    def held(self, name: str) -> Piece:
        return self.saved(name)

    def refresh(self) -> None:
        """As DeepSpeed's own loading: `_rigid_load_state_dict`, deepspeed/runtime/zero/stage3.py."""
        zero = self._zero
        for group, master in enumerate(zero.fp32_partitioned_groups_flat):
            flat = zero.fp16_partitioned_groups_flat[group]
            flat.data.copy_(master.data)
            updated = zero.unflatten(flat, zero.fp16_partitioned_groups[group])
            for partition, value in zip(zero.fp16_partitioned_groups[group], updated, strict=True):
                partition.data = value.data
        if zero.persistent_parameters:
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


class FlatGroups:
    """Stages 1 and 2: DeepSpeedZeroOptimizer and BF16_Optimizer."""

    def __init__(self, zero: Any, parameters: Mapping[str, nn.Parameter]) -> None:
        self._zero, self._parameters = zero, parameters
        self._flats: Sequence[torch.Tensor] = _partitions(zero)
        self._data_rank = dist.get_rank(group=zero.dp_process_group)
        names = {id(parameter): name for name, parameter in parameters.items()}
        self._places = {
            names[id(parameter)]: (group, Division(offset, self._flats[group].numel()))
            for group, offsets in enumerate(_offsets(zero))
            for parameter, offset in offsets
        }

    @property
    def optimizer(self) -> Any:
        return self._zero.optimizer

    @property
    def loss_scaler(self) -> Any:
        return getattr(self._zero, "loss_scaler", None)

    @property
    def divisions(self) -> dict[str, Division]:
        """How each parameter's share of this tensor-parallel rank is divided."""
        return {name: division for name, (_, division) in self._places.items()}

    def saved(self, name: str) -> Piece:
        group, division = self._places[name]
        first, last = division.piece(self._data_rank, self._parameters[name].numel())
        start = division.offset + first - self._data_rank * division.size
        count = last - first
        return Piece(self._flats[group], start if count else 0, count, count)

    def held(self, name: str) -> Piece:
        return self.saved(name)

    def refresh(self) -> None:
        self._zero.update_lp_params()


def _partitions(zero: Any) -> Sequence[torch.Tensor]:
    """This rank's part of each group's buffer."""
    if hasattr(zero, "fp32_groups_flat_partition"):  # BF16_Optimizer
        return zero.fp32_groups_flat_partition  # type: ignore[no-any-return]
    return zero.single_partition_of_fp32_groups  # type: ignore[no-any-return]


def _offsets(zero: Any) -> list[list[tuple[nn.Parameter, int]]]:
    """The parameters of each group with the index of their first element in the group's buffer."""
    if hasattr(zero, "round_robin_bit16_groups"):
        pairs = zip(zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets, strict=True)
        return [list(zip(group, offsets, strict=True)) for group, offsets in pairs]
    found = []
    for group in zero.bf16_groups:
        offset, placed = 0, []
        for parameter in group:
            placed.append((parameter, offset))
            offset += parameter.numel()
        found.append(placed)
    return found
