"""Names for what DeepSpeed does inside a step, so that a profile can tell it from the model's own arithmetic."""

from typing import Any

from torch.profiler import record_function

from megatune.engine.replacing import method_of, replace_method


def annotate(zero: Any) -> None:
    """Put ranges around the gathers and reductions of DeepSpeed's stage-3 optimizer."""
    coordinator = zero.parameter_offload.get_param_coordinator()
    _name(coordinator, "fetch_sub_module", "gather")
    _name(coordinator, "release_sub_module", "gather")
    _name(zero, "_DeepSpeedZeroOptimizer_Stage3__reduce_and_partition_ipg_grads", "reduce")
    _name(zero, "_post_step", "gather")


def _name(owner: Any, method: str, phase: str) -> None:
    replace_method(owner, method, record_function(f"megatune::{phase}")(method_of(owner, method)))
