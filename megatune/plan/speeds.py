"""What share of its peaks a generation of devices reaches: one set of constants each, fitted once.

`benchmarks/planner.py` prints what they predict for published rows. A generation without
published rows has no constants, and its plans have no times.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Shares of peak rates, and latencies in seconds."""

    matmul_share: float
    """Of the dense peak, by matrix products of endless size."""
    matmul_half: float
    """A product of m x k and k x n takes 1 + half x (1/m + 1/n + 1/k) of that time: tiles and memory."""
    attention_share: float
    """Of the dense peak, by a flash kernel."""
    memory_share: float
    """Of the device memory's bandwidth, by kernels that only move data."""
    link_share: float
    """Of the links' bandwidth: in a node and between nodes by collectives, and to host memory."""
    link_latency_s: float
    """Of one hop inside a node."""
    network_latency_s: float
    """Of one hop between nodes."""
    gather_overhead_s: float
    """Host time of one collective of ZeRO-3: hooks, flattening, launch."""
    overlap: float
    """Share of ZeRO's communication that hides behind computation when there is enough of it."""
    step_overhead: float
    """Share of a step that no other term holds: data, clipping, stragglers, gaps between kernels."""


SPEEDS: dict[str, Speeds] = {
    "ampere": Speeds(
        matmul_share=0.78, matmul_half=75.0, attention_share=0.36, memory_share=0.75, link_share=0.85,
        link_latency_s=2.9e-6, network_latency_s=5e-6, gather_overhead_s=80e-6, overlap=0.54, step_overhead=0.026,
    ),
    "hopper": Speeds(
        matmul_share=0.645, matmul_half=78.0, attention_share=0.22, memory_share=0.65, link_share=0.85,
        link_latency_s=1.5e-6, network_latency_s=5e-6, gather_overhead_s=100e-6, overlap=0.2, step_overhead=0.049,
    ),
}  # fmt: skip


def speeds_of(generation: str) -> Speeds | None:
    """The constants of a generation of devices; None where nothing was fitted."""
    return SPEEDS.get(generation)
