"""What a rank's training state really weighs: the bytes of the engine's own tensors, counted one by one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Tensors = Iterable[torch.Tensor | None]


@dataclass(frozen=True, kw_only=True)
class HeldBytes:
    """Bytes that one rank holds between its steps, and of gradients when they are all there."""

    weights: int
    """Of what computes; gathered copies of others' weights are not among them."""
    gradients: int
    """After the backward of a step's last micro-batch."""
    optimizer: int
    """fp32 weights, unless they are the ones that compute, and moments."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def num_bytes(tensors: Tensors) -> int:
    """Bytes of the storages behind `tensors`, each counted once: views of a buffer are the buffer."""
    storages = {}
    for tensor in tensors:
        if tensor is not None:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def moments(optimizer: Any) -> list[torch.Tensor]:
    """What the optimizer keeps beside the weights; counters are none."""
    found = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in found if torch.is_tensor(value) and value.dim() > 0 and value.numel() > 1]


def zero_gradient_bytes(zero: Any) -> int:
    """Of one of DeepSpeed's optimizers, after backward and before its step."""
    if hasattr(zero, "grad_partitions_flat_buffer"):  # stage 3
        return num_bytes(
            [zero.grad_partitions_flat_buffer, *(m.grad for m in zero.fp32_partitioned_groups_flat)]
        )
    if hasattr(zero, "fp32_groups_gradients_flat"):  # BF16_Optimizer keeps both for good
        low = [parameter.grad for group in zero.bf16_groups for parameter in group]
        return num_bytes([*zero.fp32_groups_gradients_flat, *low])
    averaged = [gradient for group in zero.averaged_gradients.values() for gradient in group or ()]
    whole = [g for group in zero.bit16_groups for p in group for g in (p.grad, p.grad_accum)]
    on_host = [master.grad for master in zero.single_partition_of_fp32_groups]
    return num_bytes([*averaged, *whole, *on_host])


def zero_held(zero: Any, gradients: int) -> HeldBytes:
    """Of one of DeepSpeed's optimizers, after its first step."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        weights, masters = zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat
    elif hasattr(zero, "fp32_groups_flat_partition"):
        weights, masters = zero.bf16_groups_flat, zero.fp32_groups_flat_partition
    else:
        weights, masters = zero.bit16_groups_flat, zero.single_partition_of_fp32_groups
    return HeldBytes(
        weights=num_bytes(weights),
        gradients=gradients,
        optimizer=num_bytes([*masters, *moments(zero.optimizer)]),
    )


def plain_held(
    weights: Mapping[str, torch.Tensor], masters: Mapping[str, torch.Tensor], optimizer: Any, gradients: int
) -> HeldBytes:
    """Of plain torch, where a master in fp32 may be the weight itself."""
    own = [master for name, master in masters.items() if master is not weights[name]]
    return HeldBytes(
        weights=num_bytes(weights.values()),
        gradients=gradients,
        optimizer=num_bytes([*own, *moments(optimizer)]),
    )
