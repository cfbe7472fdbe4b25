"""What megatune does in the place of DeepSpeed's stage-3 optimizer: the same, with fewer copies and collectives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatune.config import Run
from megatune.engine.live_weights import LiveWeights
from megatune.engine.shared_gradients import SharedGradients, keep_own_gradients
from megatune.engine.world import World
from megatune.plan.buckets import buckets_of, keeps_gathered


@dataclass(frozen=True)
class TakenOver:
    """What was replaced; None is DeepSpeed's own."""

    weights: LiveWeights | None = None
    gradients: SharedGradients | None = None

    def __str__(self) -> str:
        kept = "weights kept gathered" + (
            " in shared memory" if self.weights and self.weights.is_shared else ""
        )
        parts = [kept] * (self.weights is not None)
        parts += ["gradients through shared memory"] * (self.gradients is not None)
        return "".join(f", {part}" for part in parts)

    def refresh(self) -> None:
        """Bring partitions that were changed from outside to all ranks. Collective: every rank calls it."""
        if self.weights is not None:
            self.weights.publish()


def take_over(
    zero: Any, parameters: Sequence[Any], run: Run, world: World, ds_config: dict[str, Any]
) -> TakenOver:
    """Replace parts of `zero`, the optimizer around `parameters`, where that pays. Collective: every rank calls it."""
    if run.parallel.zero_stage != 3 or world.data_group is None:
        return TakenOver()
    sizes = [int(parameter.ds_numel) for parameter in parameters]
    buckets = replace(buckets_of(ds_config), keep_gathered=run.parallel.keep_gathered)
    is_quantized = any(hasattr(parameter.ds_tensor, "ds_quant_scale") for parameter in parameters)
    may_keep = run.parallel.offload == "none" and not is_quantized
    is_kept = may_keep and keeps_gathered(sum(sizes), buckets, data_parallel=world.data_parallel)
    weights = LiveWeights(zero, parameters, world.data_group) if is_kept else None
    if world.device.type != "cpu":
        return TakenOver(weights)
    if world.data_parallel == 1:
        keep_own_gradients(zero)
        return TakenOver(weights)
    gradients = SharedGradients.install(zero, world.data_group, num_params=sum(sizes), largest=max(sizes))
    return TakenOver(weights, gradients)
