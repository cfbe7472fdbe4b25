"""Which rank a process is."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RankInfo:
    """Which rank this process is. Ranks count from 0; `local_*` are those of this machine."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    master_addr: str
    master_port: int
    launcher: str
    """`local`, `torchrun`, `slurm`, `mpi`, `ssh`, or `environment` when somebody else set the variables."""
    num_nodes: int | None = None
    """Machines of the job, where the launcher says how many."""

    @property
    def nodes(self) -> int:
        """Machines of the job: as the launcher says, else by the ranks on this one."""
        return self.num_nodes or -(-self.world_size // self.local_world_size)
