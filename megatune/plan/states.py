"""Model states: weights, gradients and optimizer of one rank, under every ZeRO stage.

`paper_state_bytes` is the ZeRO paper's formula; `rank_states` is what this engine holds, which is more:
micro-batches and ranks add gradients in fp32.
"""

from dataclasses import dataclass, replace

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
    """Bytes of one rank; host bytes and disk bytes are those that offload moves there."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    host_weights: int = 0
    host_gradients: int = 0
    host_optimizer: int = 0
    disk_optimizer: int = 0
    host_pinned: tuple[int, ...] = ()
    """Sizes of the host buffers among these that DeepSpeed locks in memory (`pin_memory`), where there is a GPU."""


def rank_states(
    model: ModelWeights, layout: Layout, *, precision: str, bytes_a_master: int, in_one_group: bool
) -> States:
    """The states of the rank that holds the most; `bytes_a_master` is `optimizer_bytes`.

    Exact for stages 0 and 3, and for 1 and 2 in bf16: see tests/plan/test_states.py. In fp32 and fp16 stages 1
    and 2 give up a part of the gradients before the step: this is what they hold before that.
    `in_one_group`: as Adagrad has its parameters.
    """
    whole = _whole_states(model, layout, precision, bytes_a_master)
    if layout.zero_stage == 0:
        return whole
    if layout.zero_stage == 3:
        share = model.num_share(layout.tensor_parallel, layout.data_parallel)
        return _stage_three(share, layout.offload_kind, precision, bytes_a_master)
    share = model.flat_share(layout.tensor_parallel, layout.data_parallel, in_one_group=in_one_group)
    padded, element = share * layout.data_parallel, ELEMENT_BYTES[precision]
    weights, masters = element * padded, bytes_a_master * share
    gradients = GRADIENT_BYTES * (share if layout.zero_stage == 2 else padded)
    if layout.offload == "none":
        # Under stage 1 the bf16 gradients stay beside their fp32 sums (bf16_optimizer.py, `clear_lp_grads`).
        stays = whole.weights if layout.zero_stage == 1 and precision == "bf16" else 0
        return States(weights=weights, gradients=gradients + stays, optimizer=masters)
    # The summed gradients stay on the device, and a copy is made for the optimizer on the host, where new
    # weights are rounded before they go back (stage_1_and_2.py, `param_buffer_of_bit16_for_cpu_offload_groups`).
    return States(
        weights=weights,
        gradients=gradients,
        host_gradients=GRADIENT_BYTES * share,
        host_optimizer=masters + element * share,
        host_pinned=(GRADIENT_BYTES * share, GRADIENT_BYTES * share, element * share),
    )


def _whole_states(model: ModelWeights, layout: Layout, precision: str, bytes_a_master: int) -> States:
    """Stage 0. In fp32 the masters are the weights themselves."""
    num_local, element = model.num_local_params(layout.tensor_parallel), ELEMENT_BYTES[precision]
    beside = bytes_a_master - (GRADIENT_BYTES if element == GRADIENT_BYTES else 0)
    return States(
        weights=element * num_local, gradients=GRADIENT_BYTES * num_local, optimizer=beside * num_local
    )


def _stage_three(share: int, offload: str, precision: str, bytes_a_master: int) -> States:
    """Offloaded gradients are stepped where they are added up (engine/take_over.py): one copy of them."""
    weights, gradients, masters = (
        ELEMENT_BYTES[precision] * share,
        GRADIENT_BYTES * share,
        bytes_a_master * share,
    )
    if offload == "none":
        return States(weights=weights, gradients=gradients, optimizer=masters)
    on_host = States(host_gradients=gradients, host_pinned=(gradients,))
    if offload == "nvme":
        return replace(on_host, weights=weights, disk_optimizer=masters)
    if offload == "optimizer":
        return replace(on_host, weights=weights, host_optimizer=masters)
    return replace(on_host, host_weights=weights, host_optimizer=masters, host_pinned=(gradients, weights))
