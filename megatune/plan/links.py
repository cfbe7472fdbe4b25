"""What the doctor measured of the network: latency and bandwidth of the links inside a node and between nodes.

A message of n bytes takes alpha + beta * n seconds (Hockney 1994): alpha is the latency, 1 / beta the
bandwidth. The doctor writes the record, into the run folder and into the file in which this user keeps those of all
places; plans read it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatune.plan.kept import read_kept, write_kept


@dataclass(frozen=True, kw_only=True)
class Link:
    """One kind of link, as a straight line through its measurements."""

    latency_s: float
    bytes_per_s: float
    num_points: int

    def seconds(self, num_bytes: float) -> float:
        """Time of one message.

        >>> Link(latency_s=1e-3, bytes_per_s=1e6, num_points=4).seconds(1e6)
        1.001
        """
        return self.latency_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True, kw_only=True)
class Links:
    """The links of one place. None: there is no such link there, or it was not measured."""

    measured_at: str
    """UTC, `2026-01-31T12:00:00Z`."""
    backend: str
    num_nodes: int
    intra_node: Link | None
    inter_node: Link | None


def fit_link(points: Sequence[tuple[float, float]]) -> Link | None:
    """The line through (bytes, seconds) that has the least squared relative error; None when there is none.

    Relative, because the seconds span four powers of ten and the small messages alone hold the latency.
    A latency below 0 is taken as 0. There is no line through fewer than two sizes, nor when larger
    messages are faster.

    >>> fit_link([(0, 1e-3), (1e6, 1.001)])
    Link(latency_s=0.001, bytes_per_s=1000000.0, num_points=2)
    """
    usable = [(size, seconds) for size, seconds in points if seconds > 0]
    if len({size for size, _ in usable}) < 2:
        return None
    # Minimises the sum of ((alpha + beta * n - t) / t) ** 2: two normal equations with weights 1 / t ** 2.
    weights = [(size, seconds, 1 / seconds**2) for size, seconds in usable]
    total = sum(weight for _, _, weight in weights)
    first = sum(weight * size for size, _, weight in weights)
    second = sum(weight * size * size for size, _, weight in weights)
    time_sum = sum(weight * seconds for _, seconds, weight in weights)
    cross = sum(weight * size * seconds for size, seconds, weight in weights)
    beta = (total * cross - first * time_sum) / (total * second - first**2)
    alpha = (time_sum - beta * first) / total
    if alpha < 0:
        alpha, beta = 0.0, cross / second
    if beta <= 0:
        return None
    return Link(latency_s=_digits(alpha), bytes_per_s=_digits(1 / beta), num_points=len(usable))


def place_key(*, cluster: str | None, partition: str | None, host: str) -> str:
    """The name under which links are kept: cluster and partition, or the host where there is no scheduler."""
    return f"{cluster}/{partition or 'n/a'}" if cluster else host


def links_json(links: Links) -> dict[str, Any]:
    """The record as JSON values."""
    return asdict(links)


def write_links(file: Path, key: str, links: Links) -> None:
    """Put the record of `key` into `file`, beside those of other places. Raises OSError."""
    write_kept(file, "links", {**read_kept(file, "links"), key: links_json(links)})


def read_links(file: Path, key: str) -> Links | None:
    """The record of `key`; None when nothing was measured there, or by another version."""
    return links_of(read_kept(file, "links").get(key))


def links_of(entry: object) -> Links | None:
    """The record that `links_json` wrote; None for anything else, as another version may have left it."""
    if not isinstance(entry, dict):
        return None
    try:
        return Links(
            measured_at=entry["measured_at"],
            backend=entry["backend"],
            num_nodes=entry["num_nodes"],
            intra_node=_link(entry["intra_node"]),
            inter_node=_link(entry["inter_node"]),
        )
    except (KeyError, TypeError):
        return None


def _link(entry: dict[str, Any] | None) -> Link | None:
    link = None if entry is None else Link(**entry)
    return link if link is not None and link.bytes_per_s > 0 else None


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
