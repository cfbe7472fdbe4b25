"""Which rank a process of mpirun is, from the variables of Open MPI, MPICH and Intel MPI."""

from collections.abc import Mapping
from dataclasses import dataclass

from megatune.errors import LaunchError
from megatune.launch.variables import whole_number


@dataclass(frozen=True, kw_only=True)
class MpiProcess:
    """What the variables of mpirun say about one of its processes."""

    rank: int
    size: int
    local_rank: int | None
    local_size: int | None
    """Unknown where the starter is not Hydra or Open MPI's."""
    library: str | None
    """File name of the library that works under this starter: Open MPI's, or that of MPICH and Intel MPI."""


_OPEN_MPI = (
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)
_HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")


def mpi_process(environ: Mapping[str, str]) -> MpiProcess | None:
    """This process of mpirun or mpiexec, or None when none has started it.

    A task that srun started with MPI support (--mpi=pmix, --mpi=pmi2) is none: Slurm's own variables
    say more. Raises LaunchError for values that are no numbers.
    """
    if environ.get("OMPI_COMM_WORLD_SIZE"):
        return _read(environ, _OPEN_MPI, "libmpi.so.40")
    # Under mpirun inside a Slurm job the variables of srun are there too: those of its helpers.
    is_hydra = environ.get("MPI_LOCALNRANKS") or "SLURM_STEP_ID" not in environ
    if environ.get("PMI_SIZE") and is_hydra:
        return _read(environ, _HYDRA, "libmpi.so.12" if environ.get("MPI_LOCALNRANKS") else None)
    return None


def _read(environ: Mapping[str, str], names: tuple[str, str, str, str], library: str | None) -> MpiProcess:
    problems: list[str] = []
    rank, size, local_rank, local_size = (whole_number(environ, name, problems) for name in names)
    for name, value in zip(names, (rank, size), strict=False):
        if value is None and not problems:
            problems.append(f"{name} is not set")
    if rank is not None and size is not None and rank >= size:
        problems.append(f"{names[0]}={rank} must be below {names[1]}={size}")
    if local_rank is not None and local_size is not None and local_rank >= local_size:
        problems.append(f"{names[2]}={local_rank} must be below {names[3]}={local_size}")
    if problems:
        raise LaunchError(
            f"the variables of mpirun are impossible: {'; '.join(problems)}. Do not export them by hand."
        )
    assert rank is not None and size is not None, "told among the problems"
    return MpiProcess(rank=rank, size=size, local_rank=local_rank, local_size=local_size, library=library)
