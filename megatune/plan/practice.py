"""How an engine computes a step, where engines differ: what the time model must know beside the layout."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatune.config import Run
from megatune.plan.states import ELEMENT_BYTES, GRADIENT_BYTES
from megatune.plan.weights import ModelWeights


@dataclass(frozen=True, kw_only=True)
class Practice:
    """megatune's own practice is `practice_of`; the rest describes the systems of published rows."""

    attention: Literal["flash", "fused", "eager"]
    """flash; scores written out with a fused softmax (Megatron 2021); or every operation by itself."""
    fused_elementwise: bool
    """Norms, activations, dropout and residuals in one kernel each (Megatron, compiled blocks)."""
    recompute: Literal["none", "full", "attention", "half"] = "none"
    """Whole blocks; the attention core (Korthikanti); or every second matrix product (torchtitan)."""
    sequence_parallel: bool = False
    tensor_parallel_overlap: bool = False
    """Products next to a collective run in as many parts as there are ranks, each while the next part is on its
    way (Megatron's --tp-comm-overlap)."""
    gathers: Literal["block", "module"] = "block"
    """What ZeRO-3 gathers at a time."""
    shares_ports: bool = True
    """Ranks of a node fetch what is elsewhere once, over all ports together, as NCCL's rings do. The
    ZeRO-3 of SC21 did not: its steps take the time of all weights through each device's own port, on
    384 devices as on 2240."""
    gather_bytes: float = 2
    """Of one weight on the wire."""
    reduce_bytes: float = 2
    """Of one gradient on the wire."""
    sum_bytes: float = 2
    """The same under stage 0, where nothing is divided."""
    scatters_gradients: bool = True
    """Stages 1 and 2 send each rank its part of the gradients. DeepSpeed sums all of them on every rank
    (bf16_optimizer.py; stage_1_and_2.py, `allreduce_and_scatter`), which is twice as much."""
    keeps_gathered: bool = False
    """ZeRO-3 gathers weights once a step (plan/buckets.py, `keeps_gathered`)."""
    reused_share: float = 0.0
    """Of the weights that ZeRO-3 releases: what stays from forward to backward (plan/buckets.py, `reused_params`)."""
    activation_bytes: float = 2
    """Of one element that tensor parallelism sums, or that a pipeline sends on."""
    near_ranks: int = 0
    """hpZ: so many neighbours keep a second copy of the weights, which backward gathers among them."""
    pipeline_stages: int = 1
    virtual_stages: int = 1
    """Interleaved pipeline: model chunks a stage (arXiv:2104.04473, section 2.2.2)."""


def practice_of(
    run: Run, model: ModelWeights, *, gradient_checkpointing: bool, policy: Mapping[str, Any] | None = None
) -> Practice:
    """What megatune does with `run`: transformers' own modules, kernel by kernel, under DeepSpeed."""
    zero = (policy or {}).get("zero_optimization", {})
    element, near = ELEMENT_BYTES[run.precision], zero.get("zero_hpz_partition_size", 1)
    asked = run.model.attn_implementation
    eager = asked == "eager" or not model.kind.has_sdpa
    return Practice(
        attention="eager" if eager else "flash",
        fused_elementwise=run.model.compile,
        recompute="full" if gradient_checkpointing else "none",
        gathers="block" if run.parallel.leaf_modules else "module",
        gather_bytes=1 if zero.get("zero_quantized_weights") is True else element,
        reduce_bytes=0.5 if zero.get("zero_quantized_gradients") is True else element,
        sum_bytes=GRADIENT_BYTES,
        scatters_gradients=False,
        activation_bytes=element,
        near_ranks=near if isinstance(near, int) and near > 1 else 0,
    )
