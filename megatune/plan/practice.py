"""How an engine computes a step, where engines differ: what the time model must know beside the layout."""

from dataclasses import dataclass
from typing import Literal

from megatune.config import Run
from megatune.plan.activations import NO_SDPA
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
    gathers: Literal["block", "module"] = "block"
    """What ZeRO-3 gathers at a time."""
    shares_ports: bool = True
    """Ranks of a node fetch what is elsewhere once, over all ports together, as NCCL's rings do. The
    ZeRO-3 of SC21 did not: its steps take the time of all weights through each device's own port, on
    384 devices as on 2240."""
    reduce_bytes: int = 2
    """Of one gradient on the wire."""
    pipeline_stages: int = 1
    virtual_stages: int = 1
    """Interleaved pipeline: model chunks a stage (arXiv:2104.04473, section 2.2.2)."""


def practice_of(run: Run, model: ModelWeights, *, gradient_checkpointing: bool) -> Practice:
    """What megatune does with `run`: transformers' own modules, kernel by kernel, under DeepSpeed."""
    asked = run.model.attn_implementation
    eager = asked == "eager" or model.shape.model_type in NO_SDPA
    return Practice(
        attention="eager" if eager else "flash",
        fused_elementwise=False,
        recompute="full" if gradient_checkpointing else "none",
        gathers="block" if run.parallel.leaf_modules else "module",
        reduce_bytes=4 if run.precision == "fp32" else 2,
    )
