"""Where ranks that mpirun started meet: MPI itself carries the address to them, and is then left.

MPI's variables hold no address. The training does not use MPI: torch's backends are its own.
"""

import contextlib
import importlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatune import __version__
from megatune.errors import LaunchError
from megatune.launch.addresses import is_loopback
from megatune.launch.ports import LOOPBACK, reserve_port

_WITHOUT_MPI = "Or export MASTER_ADDR and MASTER_PORT to all ranks: then no MPI library is needed."


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """This process among those that mpirun started, and where they meet."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    num_nodes: int
    address: str
    port: int


Meet = Callable[[], Meeting]


def meet() -> Meeting:
    """Ask MPI who is who, agree on rank 0's address and a free port there, and leave MPI.

    Collective: every process of mpirun calls it, once. Raises LaunchError, on all of them, when no MPI
    library can be used or when they run different versions of megatune.
    """
    mpi = _load()
    try:
        everyone = mpi.COMM_WORLD
        _refuse_other_versions(everyone.allgather((socket.gethostname(), __version__)))
        here = everyone.Split_type(mpi.COMM_TYPE_SHARED)
        num_nodes = everyone.allreduce(int(here.rank == 0))
        is_with_first = here.bcast(everyone.rank) == 0
        address, port = _agree(everyone, num_nodes, is_with_first=is_with_first)
        return Meeting(
            rank=everyone.rank,
            size=everyone.size,
            local_rank=here.rank,
            local_size=here.size,
            num_nodes=num_nodes,
            address=address,
            port=port,
        )
    finally:
        # Now and not at exit: there it would wait for ranks that have failed.
        mpi.Finalize()


def _load() -> Any:
    try:
        mpi4py = importlib.import_module("mpi4py")
        mpi4py.rc.threads = False  # one thread talks, and only here
        return importlib.import_module("mpi4py.MPI")
    except ModuleNotFoundError as error:
        raise LaunchError(
            f"mpirun started this process, and its address has to be asked of MPI, but there is no "
            f"{error.name}. Install it (`pip install mpi4py`). {_WITHOUT_MPI}"
        ) from error
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"mpirun started this process, but mpi4py cannot use an MPI library: {error}. Load the module of "
            f"the MPI whose mpirun this is, or install one (`pip install mpich`). {_WITHOUT_MPI}"
        ) from error


def _refuse_other_versions(versions: list[tuple[str, str]]) -> None:
    if len({version for _, version in versions}) == 1:
        return
    found = ", ".join(sorted({f"{version} on {host}" for host, version in versions}))
    raise LaunchError(f"the ranks run different versions of megatune: {found}. Install the same everywhere.")


def _agree(everyone: Any, num_nodes: int, *, is_with_first: bool) -> tuple[str, int]:
    """Rank 0's address, by a name that every rank can resolve or else as a number, and a port on it."""
    port = None
    if everyone.rank == 0:
        with reserve_port() as port:
            pass
    port = everyone.bcast(port)
    if num_nodes == 1:
        return LOOPBACK, port
    names = everyone.bcast(_own_names() if everyone.rank == 0 else None)
    found = everyone.allgather([is_with_first or _leads_elsewhere(name) for name in names])
    for name, answers in zip(names, zip(*found, strict=True), strict=True):
        if all(answers):
            return name, port
    raise LaunchError(
        f"other hosts than the first rank's do not find it by {', '.join(names)}. Export MASTER_ADDR and "
        "MASTER_PORT to all ranks."
    )


def _own_names() -> list[str]:
    """What others may call this host, the numeric address of its outgoing interface last."""
    names = [socket.gethostname(), socket.getfqdn()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        # An address for documentation; connecting a datagram socket sends nothing. Where no route
        # leads out of the network the names have to do.
        probe.connect(("192.0.2.1", 9))
        names.append(probe.getsockname()[0])
    return list(dict.fromkeys(names))


def _leads_elsewhere(name: str) -> bool:
    """Whether `name` is the address of another host, as seen from this one."""
    try:
        found = socket.getaddrinfo(name, None)
    except OSError:
        return False
    return not any(is_loopback(str(entry[4][0])) for entry in found)
