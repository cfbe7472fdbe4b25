"""Seconds of one optimizer step, by phase: what computes, what communicates, and what hides behind what."""

from dataclasses import dataclass, fields, replace

from megatune.plan.layout import Layout
from megatune.plan.network import Group, Network, all_reduce_seconds, gather_seconds
from megatune.plan.practice import Practice
from megatune.plan.traffic import DataTraffic, data_traffic, host_bytes_a_weight
from megatune.plan.weights import ModelWeights
from megatune.plan.work import Device, Passes, block_passes, head_passes, optimizer_s

_CPU_ADAM_BYTES_PER_S = 40e9
"""What one rank's share of host memory gives DeepSpeed's CPU Adam, with eight ranks on a node of 300 GB/s."""


@dataclass(frozen=True, kw_only=True)
class Phases:
    """Seconds of one optimizer step that the step waits for; what is hidden is not in it."""

    forward_s: float
    backward_s: float
    recompute_s: float
    tensor_parallel_s: float
    zero_s: float
    pipeline_s: float
    offload_s: float
    optimizer_s: float
    other_s: float

    @property
    def total_s(self) -> float:
        return float(sum(getattr(self, field.name) for field in fields(self)))


def step_phases(
    model: ModelWeights,
    layout: Layout,
    *,
    seq: int,
    ranks_per_node: int,
    device: Device,
    network: Network,
    practice: Practice,
    disk_bytes_per_s: float | None = None,
) -> Phases:
    """The step of `layout` on this device and network, and a node's disk where states lie on it."""
    tp, micro = layout.tensor_parallel, layout.micro_batch
    stages = practice.pipeline_stages
    block = block_passes(model, micro, seq, tp, device, practice)
    plain = block_passes(model, micro, seq, tp, device, _without_recompute(practice))
    head = head_passes(model, micro * seq, tp, device)
    blocks = model.shape.num_layers / stages
    compute = Passes(blocks * plain.forward_s, blocks * plain.backward_s) + head
    again = blocks * (block.backward_s - plain.backward_s)
    tensor = _tensor_parallel_s(model, layout, seq, ranks_per_node, network, practice) / stages
    if practice.tensor_parallel_overlap:
        tensor = max(tensor / tp, tensor - compute.forward_s - compute.backward_s)
    busy = compute.forward_s + compute.backward_s + again + tensor
    count = layout.accumulation
    traffic = data_traffic(layout, practice)
    zero = 0.0
    if layout.zero_stage == 3:
        sent_s = _zero_s(traffic, model, layout, ranks_per_node, device, network, practice)
        zero = count * _exposed(sent_s, busy, device)
    reduce = _exchange_s(traffic, model, layout, ranks_per_node, network, practice)
    pipeline = _pipeline_s(model, layout, seq, network, practice, busy)
    optimizer, offload = _update_s(model, layout, device, practice)
    if layout.offload_kind == "nvme" and disk_bytes_per_s is not None:
        on_disk = _disk_s(model, layout, min(ranks_per_node, layout.num_devices), disk_bytes_per_s)
        offload += max(0.0, on_disk - optimizer)
    known = count * busy + zero + reduce + pipeline + optimizer + offload
    return Phases(
        forward_s=count * compute.forward_s,
        backward_s=count * compute.backward_s,
        recompute_s=count * again,
        tensor_parallel_s=count * tensor,
        zero_s=zero + reduce,
        pipeline_s=pipeline,
        offload_s=offload,
        optimizer_s=optimizer,
        other_s=known * device.speeds.step_overhead,
    )


def _without_recompute(practice: Practice) -> Practice:
    return replace(practice, recompute="none")


def _tensor_parallel_s(
    model: ModelWeights, layout: Layout, seq: int, ranks_per_node: int, network: Network, practice: Practice
) -> float:
    """All-reduces of a micro-batch: two a block forward, two backward, two more where it is computed again
    (arXiv:2104.04473, section 3.2), and the embedding's. So are gradients of weights that ranks share heads of."""
    group = Group(layout.tensor_parallel, min(layout.tensor_parallel, ranks_per_node))
    each = 6 if practice.recompute == "full" else 4
    num_bytes = practice.activation_bytes * layout.micro_batch * seq * model.shape.hidden_size
    sums_s = (each * model.shape.num_layers + 2) * all_reduce_seconds(num_bytes, group, network)
    for weight in model.shared_weights(layout.tensor_parallel):
        num_bytes = practice.activation_bytes * weight.num_params
        sums_s += model.shape.num_layers * all_reduce_seconds(num_bytes, group, network)
    return sums_s


def _data_group(layout: Layout, ranks_per_node: int) -> Group:
    per_node = max(1, ranks_per_node // layout.tensor_parallel)
    return Group(layout.data_parallel, min(layout.data_parallel, per_node))


def _zero_s(
    traffic: DataTraffic,
    model: ModelWeights,
    layout: Layout,
    ranks_per_node: int,
    device: Device,
    network: Network,
    practice: Practice,
) -> float:
    """What ZeRO-3 sends in one micro-batch, a block or a module at a time."""
    group = _data_group(layout, ranks_per_node)
    local = model.local_block(layout.tensor_parallel)
    modules = len({weight.module for weight in local})
    calls = model.shape.num_layers * (modules if practice.gathers == "module" else 1) + 2
    params = model.num_local_params(layout.tensor_parallel)
    near = min(practice.near_ranks, ranks_per_node) or group.size
    neighbours = group if near >= group.size else Group(near, min(near, group.per_node))
    seconds = 0.0
    for one in traffic.a_micro_batch:
        num_bytes, among = params * one.element_bytes / calls, neighbours if one.is_near else group
        once = gather_seconds(num_bytes, among, network, shares_ports=practice.shares_ports)
        seconds += one.share * calls * (once + device.speeds.gather_overhead_s)
    return seconds


def _exposed(communication_s: float, compute_s: float, device: Device) -> float:
    """What a step waits for: at least what computation is too short to hide."""
    hidden = device.speeds.overlap * min(communication_s, compute_s)
    return communication_s - hidden


def _exchange_s(
    traffic: DataTraffic,
    model: ModelWeights,
    layout: Layout,
    ranks_per_node: int,
    network: Network,
    practice: Practice,
) -> float:
    """What data parallelism sends at once, and nothing hides: at the end of a step, and under stage 2 of a
    micro-batch."""
    group, passes = _data_group(layout, ranks_per_node), traffic.a_step
    if layout.zero_stage < 3:
        passes += traffic.a_micro_batch * layout.accumulation
    params = model.num_local_params(layout.tensor_parallel) / practice.pipeline_stages
    return sum(gather_seconds(params * one.bytes_a_weight, group, network) for one in passes)


def _pipeline_s(
    model: ModelWeights, layout: Layout, seq: int, network: Network, practice: Practice, busy_s: float
) -> float:
    """The bubble, (p - 1) / v micro-batches (arXiv:2104.04473, section 2.2), and what is sent between stages."""
    stages, chunks = practice.pipeline_stages, practice.virtual_stages
    if stages == 1:
        return 0.0
    num_bytes = practice.activation_bytes * layout.micro_batch * seq * model.shape.hidden_size
    num_bytes /= layout.tensor_parallel
    sent = 2 * chunks * (network.network_latency_s + num_bytes / network.network_bytes_per_s)
    gathered = 2 * chunks * num_bytes * (layout.tensor_parallel - 1) / network.link_bytes_per_s
    bubble = (stages - 1) / chunks * busy_s
    return bubble + layout.accumulation * (sent + gathered)


def _update_s(model: ModelWeights, layout: Layout, device: Device, practice: Practice) -> tuple[float, float]:
    """Seconds of the optimizer, and of moving what lives in host memory, of one rank."""
    shards = layout.data_parallel if layout.zero_stage >= 1 else 1
    params = model.num_local_params(layout.tensor_parallel) / practice.pipeline_stages / shards
    if layout.offload == "none":
        return optimizer_s(params, device), 0.0
    over_bus = params * host_bytes_a_weight(layout, practice.activation_bytes)
    return 28 * params / _CPU_ADAM_BYTES_PER_S, over_bus / device.host_bytes_per_s


def _disk_s(model: ModelWeights, layout: Layout, ranks_per_node: int, disk_bytes_per_s: float) -> float:
    """Seconds in which a node's disk gives master and moments of all its ranks, and takes them back.

    One sub-group is read and another written while a third is stepped (engine/disk_states.py).
    """
    params = model.num_share(layout.tensor_parallel, layout.data_parallel)
    return 2 * 12 * params * ranks_per_node / disk_bytes_per_s
