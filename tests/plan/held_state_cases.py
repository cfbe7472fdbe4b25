"""What ranks do in the tests of the ledger's states: one real step, then every tensor is weighed."""

from typing import Any

import torch
from parity_steps import SEQUENCES, batches, tiny_run, world_of, zero_engine


def held_bytes(folder: str, tp: int, precision: str, optimizer: str, offload: str) -> dict[str, int]:
    """Bytes of this rank's weights, gradients and optimizer after one step of DeepSpeed's engine."""
    settings: dict[str, Any] = {
        "train": {"optimizer": optimizer, "momentum": 0.0},
        "parallel": {"tp_size": tp, "offload": offload},
    }
    world = world_of(tp)
    engine = zero_engine(
        tiny_run(folder, tp, precision=precision, **settings), world, micro=SEQUENCES // world.data_parallel
    )
    (tokens,) = batches(1)
    engine.backward(engine.loss(tokens), is_last=True)
    engine.step(0.1)
    zero = engine._engine.optimizer
    masters = zero.fp32_partitioned_groups_flat
    moments = [
        value
        for state in zero.optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.dim() > 0 and value.numel() > 1
    ]
    return {
        "weights": _bytes(zero.fp16_partitioned_groups_flat),
        "gradients": zero.grad_partitions_flat_buffer.nbytes,
        "gradients_for_the_step": _bytes([m.grad for m in masters if m.grad is not None]),
        "optimizer": _bytes(masters) + _bytes(moments),
    }


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
