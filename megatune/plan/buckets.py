"""What ZeRO-3 holds beside its partitions: gathered weights, gradient buckets. Settings of the DeepSpeed file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatune.plan.weights import ModelWeights


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Sizes in elements; the defaults are those of DeepSpeed 0.19.8 (deepspeed/runtime/zero/config.py)."""

    reduce: int = 500_000_000
    prefetch: int = 50_000_000
    persistence: int = 100_000
    max_live: int = 1_000_000_000
    max_reuse: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    keep_gathered: bool | Literal["auto"] = False
    """`parallel.keep_gathered`."""


_KEYS = {
    "reduce": "reduce_bucket_size",
    "prefetch": "stage3_prefetch_bucket_size",
    "persistence": "stage3_param_persistence_threshold",
    "max_live": "stage3_max_live_parameters",
    "max_reuse": "stage3_max_reuse_distance",
    "sub_group": "sub_group_size",
}


def buckets_of(ds_config: Mapping[str, Any]) -> Buckets:
    """The sizes that a DeepSpeed configuration or policy sets; "auto" and missing ones are DeepSpeed's."""
    zero = ds_config.get("zero_optimization", {})
    given: dict[str, Any] = {
        name: int(zero[key]) for name, key in _KEYS.items() if zero.get(key, "auto") != "auto"
    }
    return Buckets(**given)


def keeps_gathered(num_local_params: int, buckets: Buckets) -> bool:
    """Do ranks without offload keep all their weights whole, from step to step?

    auto: where DeepSpeed keeps them from forward to backward anyway, for half the reuse distance reaches from one
    end of the model to the other: then it costs no memory at the peak.

    >>> keeps_gathered(134_515_008, Buckets(keep_gathered="auto"))
    True
    """
    if buckets.keep_gathered == "auto":
        return num_local_params <= buckets.max_reuse // 2
    return buckets.keep_gathered


def persistent_params(model: ModelWeights, tensor_parallel: int, buckets: Buckets) -> int:
    """Elements of the tensors that every rank keeps whole: those not above the threshold, or all."""
    whole = model.num_local_params(tensor_parallel)
    if keeps_gathered(whole, buckets):
        return whole
    inside = sum(
        w.num_params for w in model.local_block(tensor_parallel) if w.num_params <= buckets.persistence
    )
    outside = sum(
        w.num_params for w in model.local_outside(tensor_parallel) if w.num_params <= buckets.persistence
    )
    return inside * model.shape.num_layers + outside


def gathered_params(model: ModelWeights, tensor_parallel: int, buckets: Buckets) -> int:
    """Most elements that are gathered at a time, persistent ones included.

    The block at work, what is prefetched, embedding or head, and what is needed again within the reuse
    distance: between forward and backward the last blocks stay (a weight d elements before the end is
    needed again after 2d; partitioned_param_coordinator.py, `__params_to_release`).
    """
    whole = model.num_local_params(tensor_parallel)
    block = sum(weight.num_params for weight in model.local_block(tensor_parallel))
    widest = max(weight.num_params for weight in model.local_outside(tensor_parallel))
    kept = max(buckets.max_reuse // 2, block)
    prefetched = min(buckets.prefetch, max(0, buckets.max_live - block))
    return min(whole, kept + block + prefetched + widest + persistent_params(model, tensor_parallel, buckets))


def bucket_params(model: ModelWeights, tensor_parallel: int, buckets: Buckets) -> int:
    """Elements of gradients on their way: one block's (or the head's), the bucket, and its copy being scattered.

    The bucket is allocated whole whatever the model's size (stage3.py, `bucket.buffer`).
    """
    block = sum(weight.num_params for weight in model.local_block(tensor_parallel))
    widest = max(weight.num_params for weight in model.local_outside(tensor_parallel))
    whole = model.num_local_params(tensor_parallel)
    return max(block, widest) + buckets.reduce + min(buckets.reduce, whole)
