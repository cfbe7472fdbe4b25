"""The facts of all hosts over MPI, where mpirun started the ranks, before torch's own network is there.

Probed messages instead of a collective gather: that never returns when a rank hangs, and cannot say which.
"""

import socket
import sys
import time
from typing import Any

from megatune.errors import LaunchError
from megatune.launch import mpi
from megatune.launch.mpi import Meeting
from megatune.launch.ranks import RankInfo, discover_rank

_POLL_S = 0.005
_TAG = 7701


def find_rank(launcher: str, *, within_s: float) -> tuple[RankInfo | None, "HostFacts"]:
    """Which rank this process is, None outside a launched job; under mpirun with the facts of all hosts.

    `launcher`: the run file's, see `discover_rank`. Raises LaunchError.
    """
    facts = HostFacts(within_s=within_s)
    return discover_rank(launcher=launcher, meet=facts.meet), facts


class HostFacts:
    """What every rank said over MPI; only rank 0 knows it."""

    def __init__(self, *, within_s: float) -> None:
        self.by_rank: dict[int, dict[str, Any]] | None = None
        self._within_s = within_s

    def meet(self) -> Meeting:
        """Gather the facts, then agree on a place to meet and leave MPI: what `discover_rank` calls.

        Collective: every process of mpirun calls it. Raises LaunchError on rank 0, naming the ranks
        that said nothing in time.
        """
        world = _world()
        if world is not None:
            from megatune.doctor.versions import measure_versions  # loads torch

            # mpirun's variables need not tell the local rank, so every rank asks git.
            own = dict(measure_versions(asks_git=True))
            self.by_rank = gather(world, own, within_s=self._within_s)
        return mpi.meet()


def gather(world: Any, own: dict[str, Any], *, within_s: float) -> dict[int, dict[str, Any]] | None:
    """On rank 0 what every rank gave, by rank; None on the others. Raises LaunchError naming missing ranks."""
    if world.Get_rank() != 0:
        world.isend(own, dest=0, tag=_TAG).wait()
        return None
    found, waiting = {0: own}, set(range(1, world.Get_size()))
    end = time.monotonic() + within_s
    while waiting and time.monotonic() < end:
        for rank in sorted(waiting):
            message = world.improbe(source=rank, tag=_TAG)
            if message is not None:
                found[rank] = message.recv()
        waiting -= set(found)
        time.sleep(_POLL_S if waiting else 0)
    if waiting:
        raise LaunchError(
            f"missing after {within_s:.0f} s: rank(s) {', '.join(map(str, sorted(waiting)))} of {world.Get_size()} "
            f"said nothing over MPI to rank 0 on {socket.gethostname()}. Look at their hosts."
        )
    return dict(sorted(found.items()))


def _world() -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py found no MPI library
        print(f"megatune: no host facts over MPI: {error}", file=sys.stderr)
        return None
    return MPI.COMM_WORLD
