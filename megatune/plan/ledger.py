"""The memory ledger: every byte of one device and of one node, by component, for one layout.

Two moments are compared: the end of the last block's forward, when activations are most, and the optimizer
step. The ledger is of the one that needs more. Sources of each term stand where it is computed:
states.py, buckets.py, activations.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from megatune.plan.activations import (
    Tokens,
    block_bytes,
    checkpoint_bytes,
    largest_bytes,
    loss_bytes,
    outside_bytes,
)
from megatune.plan.buckets import (
    Buckets,
    bucket_bytes,
    disk_group_elements,
    gathered_params,
    keeps_gathered,
    keeps_own_gradients,
    persistent_params,
    shared_memory_bytes,
    step_gradient_bytes,
)
from megatune.plan.layout import Layout
from megatune.plan.snapshot import MOST_OF_AVAILABLE, Asked, pinned_bytes, snapshot_bytes
from megatune.plan.states import ELEMENT_BYTES, GRADIENT_BYTES, States, rank_states
from megatune.plan.weights import ModelWeights

# Anonymous memory of a rank that has imported torch, DeepSpeed, transformers and datasets and holds no model yet
# (RssAnon; torch 2.13 CPU build on x86-64): between 306 and 362 MiB. A CUDA
# context's share of it is not counted.
FRAMEWORK_BYTES = 350 * 2**20
# Allowances, not formulas: what a CUDA context with cuBLAS workspaces takes, and NCCL for each group of ranks.
_CUDA_BYTES = 700 * 2**20
_NCCL_BYTES_A_GROUP = 400 * 2**20
GIVEN_BACK_BYTES = 4 * 2**20
"""Blocks from this size on go back to the system when they are freed (engine/allocator.py)."""
_FRAGMENTATION = 0.05
"""Share of what is allocated anew in every step that the allocator of a GPU cannot use."""
_HEAP_FRAGMENTATION = 0.45
_HEAP_FRAGMENTATION_BELOW_STAGE_3 = 0.10
"""The same of a process's heap, which keeps smaller blocks when they are freed. SmolLM2-135M, bf16, packed dialogues of
512 tokens, 6 to 12 steps on one to four ranks: 29 % to 47 % under stage 3 (with offload, tensor parallelism,
checkpointing, fp32); 11 % under stages 1 and 2, whose gradients are large buckets. Stage 0, 10 steps: less than was
counted at all, in bf16 and fp32."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What does not depend on the layout."""

    model: ModelWeights
    seq: int
    precision: str
    optimizer_bytes: int
    """Of one weight: see states.py."""
    in_one_group: bool
    """The optimizer has all parameters in one group (Adagrad), not matrices and vectors apart."""
    kernel: str
    packed: bool
    buckets: Buckets
    chunked_loss: bool
    """train.chunked_loss: no whole logits exist."""
    draws_weights: bool
    """model.initialize = random: every rank draws the whole model in fp32 first."""
    snapshots: Asked
    """checkpoint.async of a run with checkpoint.save_steps; False without."""
    classes_are_known: bool = True
    """False: a classifier head is counted with the fewest classes there can be."""

    def buckets_of(self, layout: Layout) -> Buckets:
        """With offload no rank keeps weights from step to step (engine/zero.py)."""
        return self.buckets if layout.offload == "none" else replace(self.buckets, keep_gathered=False)


@dataclass(frozen=True, kw_only=True)
class Place:
    """The machine. On machines without GPUs a rank's share of the host's memory is its device's."""

    ranks_per_node: int
    device_limit_bytes: int | None
    """None where nobody knows, as on a GPU that is not in the hardware table."""
    host_limit_bytes: int | None
    """Of one node; None when nobody said."""
    on_cpu: bool
    framework_bytes: int = FRAMEWORK_BYTES
    """Host memory of one rank before it holds a model: a measured figure where there is one."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Bytes by component: of one device, and of the host memory of one node."""

    device: dict[str, int]
    host: dict[str, int]
    disk_bytes: int
    """Of the local disk of one node: what offload puts there."""
    host_peaks: dict[str, int]
    """Bytes of one node's host memory while it loads, starts the optimizer, trains and saves; {} without GPUs."""
    moment: str
    device_limit: int | None
    host_limit: int | None
    snapshot_bytes: int
    """Of one node (on machines without GPUs of one rank), whether it is counted or not."""
    saves_behind: bool | None
    """Is the snapshot counted? None: `auto` where nobody knows the memory, so that the run itself decides."""

    @property
    def device_total(self) -> int:
        return sum(self.device.values())

    @property
    def host_total(self) -> int:
        """Of the fullest of the `host_peaks`."""
        return sum(self.host.values())

    @property
    def missing_bytes(self) -> int:
        """How much the device has too little; 0 or less when the layout fits, or nobody knows its limit."""
        return 0 if self.device_limit is None else self.device_total - self.device_limit

    @property
    def host_missing_bytes(self) -> int:
        return 0 if self.host_limit is None else self.host_total - self.host_limit

    @property
    def fits(self) -> bool:
        """Is no limit that is known exceeded?"""
        return self.missing_bytes <= 0 and self.host_missing_bytes <= 0


def make_ledger(work: Workload, layout: Layout, place: Place) -> Ledger:
    """The ledger of `layout`. Raises ModelError when the model cannot be cut to its degree."""
    states = rank_states(
        work.model,
        layout,
        precision=work.precision,
        bytes_a_master=work.optimizer_bytes,
        in_one_group=work.in_one_group,
    )
    if place.on_cpu:
        states = _all_on_device(states)
    fixed = {"weights": states.weights, "gradients": states.gradients, "optimizer": states.optimizer}
    if layout.zero_stage == 3 and work.buckets.near_ranks > 1:
        local = work.model.num_local_params(layout.tensor_parallel)
        near = min(work.buckets.near_ranks, layout.data_parallel)
        fixed["second_weights"] = ELEMENT_BYTES[work.precision] * -(-local // near)
    if _shares_memory(layout, place):
        shared = shared_memory_bytes(
            work.model, layout, work.buckets_of(layout), element_bytes=ELEMENT_BYTES[work.precision]
        )
        fixed["shared_memory"] = sum(shared.values())
    in_forward, in_step = _forward_bytes(work, layout, place), _step_bytes(work, layout, place)
    stays = _stays_in_heap(work, layout) if place.on_cpu else ()
    is_forward = _sum_without(in_forward, stays) >= _sum_without(in_step, stays)
    at_peak = in_forward if is_forward else in_step | {name: in_forward[name] for name in stays}
    moment = "forward and backward" if is_forward else "optimizer step"
    passing = _host_passing(work, layout, place, states)
    unused = _heap_fragmentation(layout) if place.on_cpu else _FRAGMENTATION
    margin = {"fragmentation": int(unused * sum(at_peak.values()))}
    device = fixed | at_peak | margin | _framework_bytes(layout, place)
    host = {} if place.on_cpu else _host_bytes(states, place, _mapped_bytes(work, layout))
    holder, limit = (device, place.device_limit_bytes) if place.on_cpu else (host, place.host_limit_bytes)
    snapshot = _snapshot_bytes(work, layout, place)
    others = sum(holder.values()) + (0 if place.on_cpu else passing["save"])
    behind = _saves_behind(work.snapshots, snapshot, others, limit)
    if behind:
        holder["snapshot"] = snapshot
    peaks = {} if place.on_cpu else _host_peaks(host, passing)
    if peaks:
        host["passing"] = max(peaks.values()) - peaks["train"]
    return Ledger(
        device=device,
        host=host,
        disk_bytes=place.ranks_per_node * states.disk_optimizer,
        host_peaks=peaks,
        moment=moment,
        device_limit=place.device_limit_bytes,
        host_limit=None if place.on_cpu else place.host_limit_bytes,
        snapshot_bytes=snapshot,
        saves_behind=behind,
    )


def _heap_fragmentation(layout: Layout) -> float:
    return _HEAP_FRAGMENTATION if layout.zero_stage == 3 else _HEAP_FRAGMENTATION_BELOW_STAGE_3


def _snapshot_bytes(work: Workload, layout: Layout, place: Place) -> int:
    """What saves behind training hold: of a rank without a GPU, else of all ranks of a node, pinned."""
    own = snapshot_bytes(
        work.model,
        layout,
        bytes_a_master=work.optimizer_bytes,
        in_one_group=work.in_one_group,
        is_pinned=not place.on_cpu and layout.offload == "none",
    )
    return own if place.on_cpu else place.ranks_per_node * own


def _saves_behind(asked: Asked, snapshot: int, others: int, limit: int | None) -> bool | None:
    """`auto` takes no more of what the `others` leave than checkpoint/snapshot.py does of what it finds left."""
    if asked != "auto" or limit is None:
        return asked if asked != "auto" else None
    return snapshot <= MOST_OF_AVAILABLE * (limit - others)


def _shares_memory(layout: Layout, place: Place) -> bool:
    """Do data-parallel ranks of ZeRO-3 exchange weights and gradients through memory of one host?"""
    is_one_host = layout.num_devices <= place.ranks_per_node
    return place.on_cpu and is_one_host and layout.zero_stage == 3 and layout.data_parallel > 1


def _private_gathered(work: Workload, layout: Layout, place: Place, params: int) -> int:
    """Bytes of `params` gathered weights that a rank holds for itself."""
    whole, buckets = work.model.num_local_params(layout.tensor_parallel), work.buckets_of(layout)
    kept = keeps_gathered(whole, buckets, data_parallel=layout.data_parallel)
    return 0 if kept and _shares_memory(layout, place) else ELEMENT_BYTES[work.precision] * params


def _stays_in_heap(work: Workload, layout: Layout) -> tuple[str, ...]:
    """Components of forward and backward that a process on a CPU still holds at its optimizer step.

    The C library gives large blocks back to the system when they are freed (mallopt(3), M_MMAP_THRESHOLD); smaller
    ones stay with the process for the next forward.
    """
    largest = largest_bytes(work.model, _tokens(work, layout), layout.tensor_parallel)
    return ("activations", "gathered_weights") if largest < GIVEN_BACK_BYTES else ()


def _sum_without(sizes: Mapping[str, int], names: tuple[str, ...]) -> int:
    return sum(size for name, size in sizes.items() if name not in names)


def _tokens(work: Workload, layout: Layout) -> Tokens:
    return Tokens(
        batch=layout.micro_batch,
        seq=work.seq,
        element_bytes=ELEMENT_BYTES[work.precision],
        kernel="eager" if work.kernel == "eager" else "sdpa",
        packed=work.packed,
    )


def _all_on_device(states: States) -> States:
    return States(
        weights=states.weights + states.host_weights,
        gradients=states.gradients + states.host_gradients,
        optimizer=states.optimizer + states.host_optimizer,
        disk_optimizer=states.disk_optimizer,
    )


def _forward_bytes(work: Workload, layout: Layout, place: Place) -> dict[str, int]:
    """What is alive when the loss is taken, and while the last block's gradients are made."""
    element, tp = ELEMENT_BYTES[work.precision], layout.tensor_parallel
    tokens = _tokens(work, layout)
    block, layers = block_bytes(work.model, tokens, tp), work.model.shape.num_layers
    # Under checkpointing backward computes one block again while the inputs of all are kept.
    recomputed = layers * checkpoint_bytes(work.model, tokens) + block
    kept = recomputed if layout.gradient_checkpointing else layers * block
    is_gathered = layout.zero_stage == 3
    in_shared_memory = _shares_memory(layout, place)
    buckets = bucket_bytes(
        work.model,
        layout,
        work.buckets,
        element_bytes=element,
        on_cpu=place.on_cpu,
        in_shared_memory=in_shared_memory,
    )
    # In a process's heap the first micro-batch leaves no room for the second: the summed gradients lie where its
    # activations were. Measured: of SmolLM2-135M on two ranks, 446 MiB more with two micro-batches than with one.
    is_made_in_backward = layout.zero_stage == 0 and not (place.on_cpu and layout.accumulation > 1)
    if is_made_in_backward or in_shared_memory:
        buckets = _as_activations_go(work, layout, buckets, kept - block)
    return {
        "gathered_weights": _private_gathered(
            work, layout, place, gathered_params(work.model, layout, work.buckets_of(layout))
        )
        if is_gathered
        else 0,
        "gradient_buckets": buckets,
        "activations": kept + outside_bytes(work.model, tokens),
        "loss": loss_bytes(work.model, tokens, tp, chunked=work.chunked_loss, on_cpu=place.on_cpu),
    }


def _as_activations_go(work: Workload, layout: Layout, gradients: int, released: int) -> int:
    """What gradients that backward makes one after another add to the activations that it releases meanwhile.

    At its begin one block's gradients stand beside all activations, at its end all gradients beside one block's.
    """
    if not gradients:
        return 0
    block = sum(weight.num_params for weight in work.model.local_block(layout.tensor_parallel))
    return max(ELEMENT_BYTES[work.precision] * block, gradients - released)


def _step_bytes(work: Workload, layout: Layout, place: Place) -> dict[str, int]:
    """What the optimizer step holds beside the states: weights that stay gathered, the bucket, gradients' copies."""
    dp = layout.data_parallel
    element, tp = ELEMENT_BYTES[work.precision], layout.tensor_parallel
    on_device = layout.offload == "none" or place.on_cpu
    is_gathered = layout.zero_stage == 3
    kept = persistent_params(work.model, layout, work.buckets_of(layout)) if is_gathered else 0
    is_own = keeps_own_gradients(dp, layout.offload, work.buckets, on_cpu=place.on_cpu)
    has_bucket = is_gathered and not (is_own or _shares_memory(layout, place))
    bucket = (
        min(work.buckets.reduce, work.model.num_local_params(tp)) if place.on_cpu else work.buckets.reduce
    )
    flat = step_gradient_bytes(work.model, layout, element_bytes=element, in_one_group=work.in_one_group)
    return {
        "gathered_weights": _private_gathered(work, layout, place, kept),
        # Stages 1 and 2 give their buckets back after backward (stage_1_and_2.py, `_release_ipg_buffers`).
        "gradient_buckets": element * bucket if has_bucket else 0,
        "step_gradients": flat if on_device else 0,
        "mapped_states": _mapped_bytes(work, layout) if place.on_cpu else 0,
    }


def _mapped_bytes(work: Workload, layout: Layout) -> int:
    """Of the sub-group that is stepped, where states lie on a disk; the kernel may take it back at any moment."""
    if layout.offload_kind != "nvme":
        return 0
    share = work.model.num_share(layout.tensor_parallel, layout.data_parallel)
    return work.optimizer_bytes * min(share, disk_group_elements(work.buckets))


def _framework_bytes(layout: Layout, place: Place) -> dict[str, int]:
    if place.on_cpu:
        return {"framework": place.framework_bytes}
    groups = (layout.tensor_parallel > 1) + (layout.data_parallel > 1) + (layout.num_devices > 1)
    return {"nccl": groups * _NCCL_BYTES_A_GROUP, "framework": _CUDA_BYTES}


def _host_bytes(layout_states: States, place: Place, mapped: int) -> dict[str, int]:
    """What one node holds while it trains: libraries and offloaded states."""
    ranks = place.ranks_per_node
    return {
        "framework": ranks * place.framework_bytes,
        "offloaded_weights": ranks * layout_states.host_weights,
        "offloaded_gradients": ranks * layout_states.host_gradients,
        "offloaded_optimizer": ranks * layout_states.host_optimizer,
        "pinned_rounding": ranks * sum(pinned_bytes(size) - size for size in layout_states.host_pinned),
        "mapped_states": ranks * mapped,
    }


def _host_peaks(training: Mapping[str, int], passing: Mapping[str, int]) -> dict[str, int]:
    """Of `training` a node holds the weights alone while it loads, and no snapshot before it has saved."""
    kept, snapshot = sum(training.values()), training.get("snapshot", 0)
    later = ("offloaded_gradients", "offloaded_optimizer", "pinned_rounding")
    loading = kept - snapshot - sum(training[name] for name in later)
    return {
        "load": loading + passing["load"],
        "start": kept - snapshot + passing["start"],
        "train": kept,
        "save": kept + passing["save"],
    }


def _host_passing(work: Workload, layout: Layout, place: Place, states: States) -> dict[str, int]:
    """What the ranks of a node hold in host memory while they load, make the optimizer, and save.

    Loading copies a rank's share block by block out of files whose mapped pages all ranks share
    (model/build.py); saving brings one piece after another to the host. ZeRO-3's optimizer on the host is made with
    a second copy of the gradients (engine/take_over.py, `_step_gradients_where_they_are`).
    """
    ranks, model = place.ranks_per_node, work.model
    element, tp = ELEMENT_BYTES[work.precision], layout.tensor_parallel
    outside = sum(weight.num_params for weight in model.local_outside(tp))
    block = sum(weight.num_params for weight in model.local_block(tp))
    at_load = 4 * model.num_params if work.draws_weights else element * (outside + block)
    largest = max(weight.num_params for weight in (*model.local_outside(tp), *model.local_block(tp)))
    at_save = GRADIENT_BYTES * -(-largest // layout.data_parallel)
    at_start = pinned_bytes(states.host_gradients) if layout.zero_stage == 3 and states.host_gradients else 0
    return {"load": ranks * at_load, "start": ranks * at_start, "save": ranks * at_save}
