"""What megatune does in the place of DeepSpeed's stage-3 optimizer: the same, with fewer copies and collectives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.utils import get_norm_dtype

from megatune.config import Run
from megatune.engine.live_weights import LiveWeights, keep_live
from megatune.engine.replacing import method_of, replace_method
from megatune.engine.shared_gradients import SharedGradients, keep_own_gradients
from megatune.engine.world import World
from megatune.plan.buckets import buckets_of, keeps_gathered, keeps_own_gradients


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
    if world.tensor_parallel > 1:
        _take_norms_together(zero, max(world.tensor_group.gather_objects(len(zero.fp16_groups))))
    _step_gradients_where_they_are(zero)
    sizes = [int(parameter.ds_numel) for parameter in parameters]
    buckets = replace(buckets_of(ds_config), keep_gathered=run.parallel.keep_gathered)
    is_quantized = any(hasattr(parameter.ds_tensor, "ds_quant_scale") for parameter in parameters)
    may_keep = run.parallel.offload == "none" and not is_quantized
    is_kept = may_keep and keeps_gathered(sum(sizes), buckets, data_parallel=world.data_parallel)
    weights = keep_live(zero, parameters, world.data_group) if is_kept else None
    on_cpu = world.device.type == "cpu"
    if keeps_own_gradients(world.data_parallel, run.parallel.offload, buckets, on_cpu=on_cpu):
        keep_own_gradients(zero)
        return TakenOver(weights)
    if not on_cpu:
        return TakenOver(weights)
    gradients = SharedGradients.install(zero, world.data_group, num_params=sum(sizes), largest=max(sizes))
    return TakenOver(weights, gradients)


def _step_gradients_where_they_are(zero: Any) -> None:
    """Have the optimizer read gradients where they are added up: DeepSpeed copies them all for it.

    Sub-groups lie there one after another (stage3.py, `grad_partitions_flat_buffer` and `set_grad_positions`).
    """
    flat, start, parts = zero.grad_partitions_flat_buffer, 0, []
    if any(master.device != flat.device for master in zero.fp32_partitioned_groups_flat):
        return  # a policy leaves a share of the states on the device (`offload_optimizer.ratio`)
    for master in zero.fp32_partitioned_groups_flat:
        assert flat.dtype == master.dtype
        parts.append(flat.narrow(0, start, master.numel()))
        start += master.numel()
    if zero.offload_optimizer:
        for master, part in zip(zero.fp32_partitioned_groups_flat, parts, strict=True):
            master.grad = part
        _release_host_cache()
        return

    def prepare(sub_group: int) -> None:
        zero.fp32_partitioned_groups_flat[sub_group].grad = parts[sub_group]
        zero.averaged_gradients[sub_group] = None

    replace_method(zero, "_prepare_fp32_grad_for_sub_group", prepare)


def _release_host_cache() -> None:
    """What gradients were copied to is locked in memory, and torch keeps it for the next such buffer: there is none."""
    release = getattr(torch.accelerator, "empty_host_cache", None)  # not in every torch that is allowed
    if release is not None and get_accelerator().device_name() != "cpu":
        release()


def _take_norms_together(zero: Any, most_groups: int) -> None:
    """Have a tensor-parallel rank with fewer sub-groups than another take part in all the norms.

    DeepSpeed sums the norm of each sub-group over all ranks. Where heads or the vocabulary do not divide, shares
    differ, and with them the number of sub-groups: one rank would wait for ever (stage3.py, `_get_norm_groups`).
    """
    own, missing = method_of(zero, "_get_norm_groups"), most_groups - len(zero.fp16_groups)
    dtype = torch.float32 if zero.offload_optimizer else get_norm_dtype()

    def norms() -> list[torch.Tensor]:
        found = own()
        for _ in range(missing):
            square = torch.zeros(1, dtype=dtype, device=get_accelerator().current_device_name())
            dist.all_reduce(square, group=zero.dp_process_group)
            zero._model_parallel_all_reduce(square, dist.ReduceOp.SUM)
            norm = torch.where(
                square.isfinite(), square.sqrt(), -1.0
            )  # -1 as DeepSpeed tells what is not finite
            found.append(norm[0].to(found[0].device))
        return found  # type: ignore[no-any-return]

    if missing:
        replace_method(zero, "_get_norm_groups", norms)
