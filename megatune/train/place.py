"""Where a run is: its machines, who started it, the job it belongs to."""

import socket
from dataclasses import dataclass

from megatune.engine.world import World
from megatune.launch.rank_info import RankInfo
from megatune.launch.slurm_ranks import SlurmJob

_HOSTS_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Place:
    """The same on all ranks."""

    launcher: str
    num_ranks: int
    hosts: tuple[str, ...]
    """Each machine's name, in the order of its first rank."""
    master: str
    """`address:port`, where the ranks met."""
    job: SlurmJob | None

    def __str__(self) -> str:
        more = len(self.hosts) - _HOSTS_SHOWN
        hosts = ", ".join(self.hosts[:_HOSTS_SHOWN]) + (f" and {more} more" if more > 0 else "")
        text = f"{self.launcher}: {self.num_ranks} rank(s) on {len(self.hosts)} node(s) ({hosts}), met at {self.master}"
        if self.job is None:
            return text
        restarts = f", restart {self.job.restart_count}" if self.job.restart_count else ""
        return f"{text}, Slurm job {self.job.job_id or 'n/a'}{restarts}"


def find_place(rank: RankInfo, job: SlurmJob | None, world: World) -> Place:
    """Where all ranks are. Collective: every rank calls it."""
    everyone = world.gather_objects((rank.local_rank, socket.gethostname()))
    return Place(
        launcher=rank.launcher,
        num_ranks=world.size,
        # A host is counted where its first rank is: containers may all have the same name.
        hosts=tuple(host for local_rank, host in everyone if local_rank == 0),
        master=f"{rank.master_addr}:{rank.master_port}",
        job=job,
    )
