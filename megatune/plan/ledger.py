"""The memory ledger: every byte of one device and of one node, by component, for one layout.

Two moments are compared: the end of the last block's forward, when activations are most, and the optimizer
step. The ledger is of the one that needs more. Sources of each term stand where it is computed:
states.py, buckets.py, activations.py.
"""

from dataclasses import dataclass, replace

from megatune.plan.activations import (
    Tokens,
    block_bytes,
    checkpoint_bytes,
    loss_bytes,
    outside_bytes,
)
from megatune.plan.buckets import Buckets, bucket_params, gathered_params, persistent_params
from megatune.plan.layout import Layout
from megatune.plan.states import ELEMENT_BYTES, GRADIENT_BYTES, States, rank_states
from megatune.plan.weights import ModelWeights

# Private memory of a process that has imported torch, DeepSpeed, transformers and datasets (smaps_rollup,
# torch 2.13 CPU build on x86-64): 357 MiB. A CUDA context's share of it is not counted.
FRAMEWORK_BYTES = 357 * 2**20
# Allowances, not formulas: what a CUDA context with cuBLAS workspaces takes, and NCCL for each group of ranks.
_CUDA_BYTES = 700 * 2**20
_NCCL_BYTES_A_GROUP = 400 * 2**20
_FRAGMENTATION = 0.05
"""Share of what is allocated anew in every step that the allocator cannot use."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What does not depend on the layout."""

    model: ModelWeights
    seq: int
    precision: str
    optimizer_bytes: int
    """Of one weight: see states.py."""
    kernel: str
    packed: bool
    buckets: Buckets
    chunked_loss: bool
    """train.chunked_loss: no whole logits exist."""
    draws_weights: bool
    """model.initialize = random: every rank draws the whole model in fp32 first."""

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


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Bytes by component: of one device, and of the host memory of one node."""

    device: dict[str, int]
    host: dict[str, int]
    moment: str
    device_limit: int | None
    host_limit: int | None

    @property
    def device_total(self) -> int:
        return sum(self.device.values())

    @property
    def host_total(self) -> int:
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
    states = rank_states(work.model, layout, precision=work.precision, bytes_a_master=work.optimizer_bytes)
    if place.on_cpu:
        states = _all_on_device(states)
    fixed = {"weights": states.weights, "gradients": states.gradients, "optimizer": states.optimizer}
    in_forward, in_step = _forward_bytes(work, layout, place.on_cpu), _step_bytes(work, layout, place)
    moment = "forward and backward" if sum(in_forward.values()) >= sum(in_step.values()) else "optimizer step"
    at_peak = in_forward if moment == "forward and backward" else in_step
    margin = {"fragmentation": int(_FRAGMENTATION * sum(at_peak.values()))}
    return Ledger(
        device=fixed | at_peak | margin | _framework_bytes(layout, place),
        host={} if place.on_cpu else _host_bytes(work, layout, place, states),
        moment=moment,
        device_limit=place.device_limit_bytes,
        host_limit=None if place.on_cpu else place.host_limit_bytes,
    )


def _all_on_device(states: States) -> States:
    return States(
        weights=states.weights + states.host_weights,
        gradients=states.gradients + states.host_gradients,
        optimizer=states.optimizer + states.host_optimizer,
    )


def _forward_bytes(work: Workload, layout: Layout, on_cpu: bool) -> dict[str, int]:
    """What is alive when the loss is taken, and while the last block's gradients are made."""
    element, tp = ELEMENT_BYTES[work.precision], layout.tensor_parallel
    tokens = Tokens(
        batch=layout.micro_batch,
        seq=work.seq,
        element_bytes=element,
        kernel="eager" if work.kernel == "eager" else "sdpa",
        packed=work.packed,
    )
    block, layers = block_bytes(work.model, tokens, tp), work.model.shape.num_layers
    # Under checkpointing backward computes one block again while the inputs of all are kept.
    recomputed = layers * checkpoint_bytes(work.model, tokens) + block
    kept = recomputed if layout.gradient_checkpointing else layers * block
    gathered = buckets = 0
    if layout.zero_stage == 3:
        gathered = element * gathered_params(work.model, tp, work.buckets_of(layout))
        buckets = element * bucket_params(work.model, tp, work.buckets)
    return {
        "gathered_weights": gathered,
        "gradient_buckets": buckets,
        "activations": kept + outside_bytes(work.model, tokens),
        "loss": loss_bytes(work.model, tokens, tp, chunked=work.chunked_loss, on_cpu=on_cpu),
    }


def _step_bytes(work: Workload, layout: Layout, place: Place) -> dict[str, int]:
    """The flattened copy of one sub-group's gradients (stage3.py, `_prepare_fp32_grad_for_sub_group`)."""
    element = ELEMENT_BYTES[work.precision]
    share = work.model.num_share(layout.tensor_parallel, layout.data_parallel)
    on_device = layout.offload == "none" or place.on_cpu
    flat = GRADIENT_BYTES * min(share, work.buckets.sub_group) if on_device else 0
    return {
        "gathered_weights": element
        * persistent_params(work.model, layout.tensor_parallel, work.buckets_of(layout)),
        "gradient_buckets": element * work.buckets.reduce,
        "step_gradients": flat,
    }


def _framework_bytes(layout: Layout, place: Place) -> dict[str, int]:
    if place.on_cpu:
        return {"framework": FRAMEWORK_BYTES}
    groups = (layout.tensor_parallel > 1) + (layout.data_parallel > 1) + (layout.num_devices > 1)
    return {"nccl": groups * _NCCL_BYTES_A_GROUP, "framework": _CUDA_BYTES}


def _host_bytes(work: Workload, layout: Layout, place: Place, states: States) -> dict[str, int]:
    """One node: libraries, offloaded states, and the larger of the peaks at load and at save.

    Loading copies a rank's share block by block out of files whose mapped pages all ranks share
    (model/build.py); saving brings one piece after another to the host.
    """
    ranks, model = place.ranks_per_node, work.model
    element, tp = ELEMENT_BYTES[work.precision], layout.tensor_parallel
    outside = sum(weight.num_params for weight in model.local_outside(tp))
    block = sum(weight.num_params for weight in model.local_block(tp))
    at_load = 4 * model.num_params if work.draws_weights else element * (outside + block)
    largest = max(weight.num_params for weight in (*model.local_outside(tp), *model.local_block(tp)))
    at_save = GRADIENT_BYTES * -(-largest // layout.data_parallel)
    return {
        "framework": ranks * FRAMEWORK_BYTES,
        "offloaded_weights": ranks * states.host_weights,
        "offloaded_gradients": ranks * states.host_gradients,
        "offloaded_optimizer": ranks * states.host_optimizer,
        "load_or_save": ranks * max(at_load, at_save),
    }
