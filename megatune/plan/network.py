"""Collectives over links inside a node and between nodes: latency and bandwidth, hierarchical.

Ring all-gather and reduce-scatter of n ranks move (n - 1) / n of the data through every link and take
n - 1 hops (Thakur et al. 2005). Each device has a network port of its own: g ranks of a group on one
node use g ports at once, so a ring over whole nodes is as fast as its slowest stretch.
"""

from dataclasses import dataclass

from megatune.plan.hardware import Accelerator
from megatune.plan.links import Links
from megatune.plan.speeds import Speeds


@dataclass(frozen=True, kw_only=True)
class Network:
    """Sustained rates for one device, one direction."""

    link_bytes_per_s: float
    link_latency_s: float
    network_bytes_per_s: float
    network_latency_s: float


@dataclass(frozen=True)
class Group:
    """Ranks that communicate: `size` of them, `per_node` on each node."""

    size: int
    per_node: int

    @property
    def num_nodes(self) -> int:
        return -(-self.size // self.per_node)


def network_of(device: Accelerator, speeds: Speeds, measured: Links | None = None) -> Network:
    """The maker's links at their sustained share, or what the doctor measured in their place."""
    network = Network(
        link_bytes_per_s=device.link_bytes_per_s * speeds.link_share,
        link_latency_s=speeds.link_latency_s,
        network_bytes_per_s=device.network_bytes_per_s * speeds.link_share,
        network_latency_s=speeds.network_latency_s,
    )
    if measured is None:
        return network
    inside, between = measured.intra_node, measured.inter_node
    return Network(
        link_bytes_per_s=inside.bytes_per_s if inside else network.link_bytes_per_s,
        link_latency_s=inside.latency_s if inside else network.link_latency_s,
        network_bytes_per_s=between.bytes_per_s if between else network.network_bytes_per_s,
        network_latency_s=between.latency_s if between else network.network_latency_s,
    )


def gather_seconds(num_bytes: float, group: Group, network: Network, *, shares_ports: bool = True) -> float:
    """All-gather to `num_bytes` on every rank; a reduce-scatter of as many takes as long.

    shares_ports: see `Practice`.

    >>> net = Network(link_bytes_per_s=1e9, link_latency_s=0.0, network_bytes_per_s=1e8, network_latency_s=0.0)
    >>> gather_seconds(1e9, Group(8, 8), net), gather_seconds(1e9, Group(16, 8), net)
    (0.875, 1.171875)
    """
    if group.size == 1:
        return 0.0
    nodes, inside = group.num_nodes, min(group.size, group.per_node)
    rate = network.link_bytes_per_s if inside > 1 else float("inf")
    latency = nodes * (inside - 1) * network.link_latency_s
    if nodes > 1:
        rate = min(rate, (inside if shares_ports else 1) * network.network_bytes_per_s)
        latency += nodes * network.network_latency_s
    return latency + num_bytes * (group.size - 1) / group.size / rate


def all_reduce_seconds(num_bytes: float, group: Group, network: Network) -> float:
    """A reduce-scatter and an all-gather."""
    return 2 * gather_seconds(num_bytes, group, network)
