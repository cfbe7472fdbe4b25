"""Model states: weights, gradients and optimizer of one rank, under every ZeRO stage.

`paper_state_bytes` is the ZeRO paper's formula; `rank_states` is what this engine holds, which is more:
micro-batches and ranks add gradients in fp32.
"""

from dataclasses import dataclass

from megatune.plan.layout import Layout

# fp32 master and what the optimizer keeps for each weight, in fp32.
OPTIMIZER_BYTES = {"adamw": 12, "adam": 12, "adagrad": 8, "sgd": 8}
ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
GRADIENT_BYTES = 4
"""Of an accumulated gradient: fp32 in every precision (plan/ds_config.py, `grad_accum_dtype`)."""


def paper_state_bytes(num_params: float, *, stage: int, data_parallel: int) -> float:
    """Bytes a rank holds in mixed-precision Adam (arXiv:1910.02054, section 3 and figure 1).

    2 for the weight, 2 for its gradient, 12 for master and moments; stage 1 divides the 12, stage 2 the
    gradient too, stage 3 all.

    >>> [round(paper_state_bytes(7.5e9, stage=stage, data_parallel=64) / 1e9, 1) for stage in range(4)]
    [120.0, 31.4, 16.6, 1.9]
    """
    divided = {0: 0, 1: 12, 2: 14, 3: 16}[stage]
    return num_params * (16 - divided + divided / data_parallel)


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes of one rank; host bytes are those that offload moves there."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    host_weights: int = 0
    host_gradients: int = 0
    host_optimizer: int = 0


def rank_states(num_local_params: int, layout: Layout, *, precision: str, optimizer: str) -> States:
    """The states of one rank that holds `num_local_params` before ZeRO divides them.

    Offloaded gradients are kept twice on the host: as they are added up, and as the optimizer reads
    them (deepspeed/runtime/zero/stage3.py, `grad_partitions_flat_buffer` and `subgroup_gradient_buffer`).
    """
    share = -(-num_local_params // layout.data_parallel)
    stage = layout.zero_stage
    weights = ELEMENT_BYTES[precision] * (share if stage == 3 else num_local_params)
    gradients = GRADIENT_BYTES * (share if stage >= 2 else num_local_params)
    masters = OPTIMIZER_BYTES[optimizer] * (share if stage >= 1 else num_local_params)
    if layout.offload == "none":
        return States(weights=weights, gradients=gradients, optimizer=masters)
    host = {"host_gradients": 2 * gradients, "host_optimizer": masters}
    if layout.offload == "optimizer":
        return States(weights=weights, **host)
    return States(host_weights=weights, **host)
