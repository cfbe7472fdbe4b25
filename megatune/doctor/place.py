"""Where a check runs: this rank, what is asked of it, and what it shares with the others."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from megatune.doctor.exchange import Exchange
from megatune.launch.ranks import RankInfo


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the user wants to train, as far as the checks depend on it."""

    folder: Path
    """train.output_dir, or the current folder without a run file."""
    has_run: bool = False
    checkpoint_bytes: int | None = None
    """Bytes of one checkpoint on the disk; None when the model's size is not known."""
    host_bytes: int | None = None
    """Least host memory of the whole job, over all nodes; None when the model's size is not known."""
    asked_nodes: int | None = None
    offload_folder: Path | None = None
    """Of `parallel.offload: nvme:/path`; None without."""


@dataclass(kw_only=True)
class Place:
    """What every check of this rank gets."""

    rank: RankInfo
    node: str
    setting: Setting
    surroundings: Mapping[str, str]
    """Variables of the scheduler and the network: `ranks.surroundings`."""
    exchange: Exchange
    device: torch.device
    nodes: Mapping[int, str] = field(default_factory=dict)
    """Rank -> node, known to every rank once all have met."""
    rung_ends_at: float = 0.0
    """Of `time.monotonic`: when the check that runs now must have answered."""

    def left_s(self) -> float:
        """Seconds until the check that runs now must have answered; at least a tenth."""
        return max(0.1, self.rung_ends_at - time.monotonic())

    @property
    def is_first_of_node(self) -> bool:
        """Whether this rank measures what all ranks of a node share."""
        mine = [rank for rank, node in self.nodes.items() if node == self.node]
        return self.rank.rank == min(mine, default=self.rank.rank)

    def other_firsts(self) -> list[int]:
        """The first rank of every node but that of rank 0."""
        firsts: dict[str, int] = {}
        for rank in sorted(self.nodes):
            firsts.setdefault(self.nodes[rank], rank)
        return [rank for rank in firsts.values() if rank != 0]
