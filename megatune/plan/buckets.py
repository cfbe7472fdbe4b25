"""What ZeRO holds beside its partitions: gathered weights, gradient buckets. Settings of the DeepSpeed file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatune.errors import ModelError, PlanError
from megatune.plan.layout import Layout
from megatune.plan.states import GRADIENT_BYTES
from megatune.plan.weights import ModelWeights, count_model


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
    near_ranks: int = 1
    """hpZ: so many neighbours keep a second copy of the weights between them; 1 is none."""
    is_quantized: bool = False
    """ZeRO++ sends weights or gradients in a few bits."""
    overlap: bool = False
    """Under stages 1 and 2, where it doubles the bucket; stage 3 has one whatever this says."""


_LEAST_MESSAGE = 2**24
"""Elements of a message below which links would wait for more than they carry: 32 MiB in bf16."""
_ALL_REDUCE = 500_000_000
"""Elements that bf16 stage 1 reduces at a time (engine.py, `MEMORY_OPT_ALLREDUCE_SIZE`)."""
DISK_GROUP_ELEMENTS = 100_000_000
"""Elements of a sub-group whose states lie on a disk: 1.2 GB that are in memory while the optimizer steps them."""
_PLAIN_BUCKET = 2**25  # engine/plain.py
_KEYS = {
    "reduce": "reduce_bucket_size",
    "prefetch": "stage3_prefetch_bucket_size",
    "persistence": "stage3_param_persistence_threshold",
    "max_live": "stage3_max_live_parameters",
    "max_reuse": "stage3_max_reuse_distance",
    "sub_group": "sub_group_size",
    "near_ranks": "zero_hpz_partition_size",
}


def sizes_of(model: ModelWeights) -> dict[str, int]:
    """What "auto" means for each size of a policy, in elements: formulas of the model.

    Two blocks' gradients make one message, more where blocks are small; the next block is gathered while one
    computes; norms and biases stay whole on every rank. DeepSpeed's defaults are the limits.
    """
    block = sum(weight.num_params for weight in model.block)
    vectors = [weight.num_params for weight in model.block if len(weight.shape) == 1]
    return {
        _KEYS["reduce"]: min(max(2 * block, _LEAST_MESSAGE), Buckets.reduce),
        _KEYS["prefetch"]: min(block, Buckets.max_live),
        _KEYS["persistence"]: max(vectors, default=0),
    }


def sizes_for(config: Mapping[str, Any]) -> dict[str, int]:
    """`sizes_of` the model of a config.json; {}, which are DeepSpeed's, of one whose tensors nobody has counted."""
    try:
        return sizes_of(count_model(config))
    except (ModelError, PlanError):
        return {}


def set_sizes(zero: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, int]:
    """Those of `sizes` that a policy's `zero_optimization` leaves to them: "auto", and the bucket of gradients where
    it says nothing. DeepSpeed's own would hold the gradients of most models whole, and a copy of them.

    >>> set_sizes({"stage3_prefetch_bucket_size": "auto"},
    ...           {"reduce_bucket_size": 7, "stage3_prefetch_bucket_size": 3, "stage3_param_persistence_threshold": 1})
    {'reduce_bucket_size': 7, 'stage3_prefetch_bucket_size': 3}
    """
    unsaid = {_KEYS["reduce"]: "auto"}
    return {key: size for key, size in sizes.items() if zero.get(key, unsaid.get(key)) == "auto"}


def buckets_of(ds_config: Mapping[str, Any], model: ModelWeights | None = None) -> Buckets:
    """The sizes that a run with this DeepSpeed configuration or policy has; missing ones are DeepSpeed's, as "auto"
    without a `model`."""
    zero = dict(ds_config.get("zero_optimization", {}))
    if model is not None:
        zero |= set_sizes(zero, sizes_of(model))
    given: dict[str, Any] = {
        name: int(zero[key]) for name, key in _KEYS.items() if zero.get(key, "auto") != "auto"
    }
    return Buckets(
        **given, is_quantized=bool(quantized_messages(ds_config)), overlap=zero.get("overlap_comm") is True
    )


def quantized_messages(config: Mapping[str, Any]) -> list[str]:
    """The keys of a policy, or of what is made of it, that send weights or gradients in a few bits."""
    zero = config.get("zero_optimization")
    keys = ("zero_quantized_weights", "zero_quantized_gradients")
    return [key for key in keys if isinstance(zero, Mapping) and zero.get(key, "auto") not in ("auto", False)]


def keeps_gathered(num_local_params: int, buckets: Buckets, *, data_parallel: int) -> bool:
    """Do ranks without offload keep all their weights whole, from step to step?

    auto: where DeepSpeed keeps them from forward to backward anyway, for half the reuse distance reaches from one
    end of the model to the other: then it costs no memory at the peak. And where a rank's partition is the whole.

    >>> keeps_gathered(134_515_008, Buckets(keep_gathered="auto"), data_parallel=2)
    True
    """
    if buckets.keep_gathered == "auto":
        return data_parallel == 1 or num_local_params <= reused_params(buckets)
    return buckets.keep_gathered


def keeps_own_gradients(data_parallel: int, offload: str, buckets: Buckets, *, on_cpu: bool) -> bool:
    """Does the only rank of a data-parallel group add its gradients up under stage 3 without a bucket?

    On a GPU with offload or quantized messages the way to the sums is DeepSpeed's own.
    """
    return data_parallel == 1 and (on_cpu or (offload == "none" and not buckets.is_quantized))


def persistent_params(model: ModelWeights, layout: Layout, buckets: Buckets) -> int:
    """Elements of the tensors that every rank keeps whole beside its partition: those not above the threshold, or all.

    None where the partition is the whole, which ranks then compute with (engine/live_weights.py).
    """
    tensor_parallel = layout.tensor_parallel
    whole = model.num_local_params(tensor_parallel)
    if keeps_gathered(whole, buckets, data_parallel=layout.data_parallel):
        return 0 if layout.data_parallel == 1 else whole
    inside = sum(
        w.num_params for w in model.local_block(tensor_parallel) if w.num_params <= buckets.persistence
    )
    outside = sum(
        w.num_params for w in model.local_outside(tensor_parallel) if w.num_params <= buckets.persistence
    )
    return inside * model.shape.num_layers + outside


def reused_params(buckets: Buckets) -> int:
    """Elements at an end of the model that stay gathered: a weight d elements from it is needed again after 2d
    (partitioned_param_coordinator.py, `__params_to_release`)."""
    return buckets.max_reuse // 2


def gathered_params(model: ModelWeights, layout: Layout, buckets: Buckets) -> int:
    """Most elements that are gathered at a time, persistent ones included.

    The block at work, what is prefetched, embedding or head, and what is needed again within the reuse distance:
    between forward and backward the last blocks stay.
    """
    tensor_parallel = layout.tensor_parallel
    whole = model.num_local_params(tensor_parallel)
    if layout.data_parallel == 1 and keeps_gathered(whole, buckets, data_parallel=1):
        return 0
    block = sum(weight.num_params for weight in model.local_block(tensor_parallel))
    widest = max(weight.num_params for weight in model.local_outside(tensor_parallel))
    kept = max(reused_params(buckets), block)
    prefetched = min(buckets.prefetch, max(0, buckets.max_live - block))
    return min(whole, kept + block + prefetched + widest + persistent_params(model, layout, buckets))


def bucket_bytes(
    model: ModelWeights,
    layout: Layout,
    buckets: Buckets,
    *,
    element_bytes: int,
    on_cpu: bool,
    in_shared_memory: bool = False,
) -> int:
    """Bytes of gradients on their way during backward, beside those that states.py counts.

    Under stages 2 and 3: one block's (or the head's) gradients, the bucket, and its copy that is being reduced.
    The bucket is allocated whole whatever the model's size (stage3.py, `bucket.buffer`); in host memory only what
    is written to takes room. Ranks that share memory have no bucket: its gradients wait where they were made, and
    are added up in fp32; nor has the only rank of a group (engine/take_over.py), where nothing is sent.
    Under stages 0 and 1 backward makes the gradients of all weights; they are counted here where their fp32 sums are
    what states.py has.
    """
    tp = layout.tensor_parallel
    whole = model.num_local_params(tp)
    if layout.zero_stage == 0:
        return element_bytes * whole if element_bytes < GRADIENT_BYTES else 0
    bucket = min(buckets.reduce, whole) if on_cpu else buckets.reduce
    if layout.zero_stage == 1:
        in_bf16_sums = element_bytes < GRADIENT_BYTES and layout.offload == "none"
        return 0 if in_bf16_sums else element_bytes * bucket
    copies = 2 if layout.zero_stage == 2 and buckets.overlap else 1
    block = sum(weight.num_params for weight in model.local_block(tp))
    widest = max(weight.num_params for weight in model.local_outside(tp))
    own = keeps_own_gradients(layout.data_parallel, layout.offload, buckets, on_cpu=on_cpu)
    if layout.zero_stage == 3 and own:
        # A GPU's allocator keeps those of the last message until the stream that added them up is done.
        waiting = 0 if on_cpu else waiting_params(model, layout, buckets)
        return element_bytes * min(whole, max(block, widest) + waiting)
    if in_shared_memory:
        waiting = waiting_params(model, layout, buckets)
        return element_bytes * waiting + GRADIENT_BYTES * -(-waiting // layout.data_parallel)
    # gloo reduces a clone of what it is to scatter (ProcessGroupGloo.cpp, `_reduce_scatter_base`).
    sent = min(buckets.reduce, whole) * (2 if on_cpu and layout.zero_stage == 3 else 1)
    return element_bytes * (max(block, widest) + copies * bucket + sent)


def waiting_params(model: ModelWeights, layout: Layout, buckets: Buckets) -> int:
    """Most elements whose gradients wait under stage 3 for a full bucket (stage3.py, `reduce_ready_partitions`)."""
    tp = layout.tensor_parallel
    block = sum(weight.num_params for weight in model.local_block(tp))
    widest = max(weight.num_params for weight in model.local_outside(tp))
    return min(model.num_local_params(tp), max(buckets.reduce, block, widest))


def shared_memory_bytes(
    model: ModelWeights, layout: Layout, buckets: Buckets, *, element_bytes: int
) -> dict[str, int]:
    """A rank's part of what the data-parallel ranks of one host share under stage 3, on CPUs.

    One copy of the weights where they are kept (engine/live_weights.py), and each rank's gradients on their way to
    the others (engine/shared_gradients.py).
    """
    whole = model.num_local_params(layout.tensor_parallel)
    kept = keeps_gathered(whole, buckets, data_parallel=layout.data_parallel)
    sent = waiting_params(model, layout, buckets)
    return {
        "weights": element_bytes * -(-whole // layout.data_parallel) if kept else 0,
        "gradients": element_bytes * sent,
    }


def disk_group_elements(buckets: Buckets) -> int:
    """Of a sub-group whose states lie on a disk: the policy's size, where it is not DeepSpeed's default."""
    return DISK_GROUP_ELEMENTS if buckets.sub_group == Buckets.sub_group else buckets.sub_group


def step_gradient_bytes(
    model: ModelWeights, layout: Layout, *, element_bytes: int, in_one_group: bool
) -> int:
    """Bytes of gradients' copies that the optimizer step makes on the device.

    Stage 3: none, gradients are stepped where they are added up (engine/take_over.py). Stage 2 and fp32 stage 1: the
    flat copy of what the rank steps, unless it is summed up flat already. Stage 0: what goes over the network at a
    time. bf16 stage 1: that in fp32 and rounded (engine.py, `allreduce_bucket`).
    """
    tp, dp = layout.tensor_parallel, layout.data_parallel
    whole = model.num_local_params(tp)
    if layout.zero_stage == 3:
        return 0
    if layout.zero_stage == 0:
        return GRADIENT_BYTES * min(whole, _PLAIN_BUCKET) if dp > 1 else 0
    if element_bytes < GRADIENT_BYTES:
        sent = min(whole, _ALL_REDUCE) if layout.zero_stage == 1 else 0
        return (GRADIENT_BYTES + element_bytes) * sent
    return GRADIENT_BYTES * model.flat_share(tp, dp, in_one_group=in_one_group)
