"""Model states: weights, gradients and optimizer of one rank, under every ZeRO stage.

`paper_state_bytes` is the ZeRO paper's formula; `rank_states` is what this engine holds, which is more:
micro-batches and ranks add gradients in fp32.
"""

from dataclasses import dataclass

from megatune.plan.layout import Layout
from megatune.plan.weights import ModelWeights

_OPTIMIZER_TENSORS = {"adamw": 3, "adam": 3, "adagrad": 2, "sgd": 1}
ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
GRADIENT_BYTES = 4
"""Of an accumulated gradient: fp32 in every precision (plan/ds_config.py, `grad_accum_dtype`)."""


def optimizer_bytes(name: str, *, momentum: float = 0.0) -> int:
    """Bytes a weight: its fp32 master, and what the optimizer keeps beside it in fp32.

    >>> optimizer_bytes("adamw"), optimizer_bytes("sgd"), optimizer_bytes("sgd", momentum=0.9)
    (12, 4, 8)
    """
    return 4 * (_OPTIMIZER_TENSORS[name] + (name == "sgd" and momentum > 0))


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


def rank_states(model: ModelWeights, layout: Layout, *, precision: str, bytes_a_master: int) -> States:
    """The states of the rank that holds the most; `bytes_a_master` is `optimizer_bytes`.

    Exact under stage 3: see tests/plan/test_states.py.

    Offloaded gradients are kept twice on the host: as they are added up, and as the optimizer reads
    them (deepspeed/runtime/zero/stage3.py, `grad_partitions_flat_buffer` and `subgroup_gradient_buffer`).
    """
    num_local = model.num_local_params(layout.tensor_parallel)
    share = model.num_share(layout.tensor_parallel, layout.data_parallel)
    stage = layout.zero_stage
    weights = ELEMENT_BYTES[precision] * (share if stage == 3 else num_local)
    gradients = GRADIENT_BYTES * (share if stage >= 2 else num_local)
    masters = bytes_a_master * (share if stage >= 1 else num_local)
    if layout.offload == "none":
        return States(weights=weights, gradients=gradients, optimizer=masters)
    host = {"host_gradients": 2 * gradients, "host_optimizer": masters}
    if layout.offload == "optimizer":
        return States(weights=weights, **host)
    return States(host_weights=weights, **host)
