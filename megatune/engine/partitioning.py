"""What a DeepSpeed optimizer really divides over data-parallel ranks, read off its tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Partitioning:
    """Which states are divided; one data-parallel rank holds everything in any case, and divides all of it."""

    optimizer: bool
    gradients: bool
    weights: bool

    def __str__(self) -> str:
        parts = [name for name in ("optimizer", "gradients", "weights") if getattr(self, name)]
        return f"{', '.join(parts) or 'nothing'} divided"


def expected_partitioning(stage: int) -> Partitioning:
    """What ZeRO stage 1, 2 or 3 divides (arXiv:1910.02054, section 5)."""
    return Partitioning(optimizer=stage >= 1, gradients=stage >= 2, weights=stage >= 3)


def partitioning(optimizer: Any, parameters: Sequence[nn.Parameter], data_parallel: int) -> Partitioning:
    """What `optimizer` divides: from the sizes of its tensors, and how it was told to treat gradients."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # stage 3
        emptied = all(hasattr(parameter, "ds_id") for parameter in parameters)
        return Partitioning(optimizer=True, gradients=True, weights=emptied)
    # BF16_Optimizer, of stage 1, keeps whole gradients in fp32 and has no such attribute.
    partitions_gradients = bool(getattr(optimizer, "partition_gradients", False))
    flats, masters = _flat_weights(optimizer), _flat_masters(optimizer)
    divided = all(
        master.numel() * data_parallel == flat.numel() for flat, master in zip(flats, masters, strict=True)
    )
    return Partitioning(optimizer=bool(flats) and divided, gradients=partitions_gradients, weights=False)


def _flat_weights(optimizer: Any) -> Sequence[Any]:
    found: Sequence[Any] = (
        optimizer.bf16_groups_flat if _is_bf16_optimizer(optimizer) else optimizer.bit16_groups_flat
    )
    return found


def _flat_masters(optimizer: Any) -> Sequence[Any]:
    if _is_bf16_optimizer(optimizer):
        return optimizer.fp32_groups_flat_partition  # type: ignore[no-any-return]
    return optimizer.single_partition_of_fp32_groups  # type: ignore[no-any-return]


def _is_bf16_optimizer(optimizer: Any) -> bool:
    return hasattr(optimizer, "bf16_groups_flat")
