"""A team of processes that mpirun or srun started, over mpi4py."""

import importlib
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from megatune.data.team import ALONE, Team
from megatune.errors import LaunchError, MegatuneError, UserError
from megatune.launch.mpi_ranks import mpi_process
from megatune.launch.ranks import child_environment, use_mpi_library
from megatune.launch.slurm_ranks import step_size

T = TypeVar("T")


def find_team() -> Team:
    """The processes that were started with this one; ALONE when there are none, and then MPI is not touched.

    Raises LaunchError when MPI cannot be used, or when it does not know of the other processes.
    """
    environ = child_environment({})
    expected = num_processes(environ)
    if expected == 1:
        return ALONE
    process = mpi_process(environ)
    if process is not None and process.library is not None:
        use_mpi_library(process.library)
    team = MpiTeam(_load(expected).COMM_WORLD)
    if team.size != expected:
        raise LaunchError(
            f"{expected} processes were started, but MPI knows of {team.size}: each would prepare everything by "
            "itself. Use the mpirun of the MPI library that mpi4py finds, or `srun --mpi=pmix` (`srun "
            "--mpi=list` names what there is), or start one process."
        )
    return team


def num_processes(environ: Mapping[str, str]) -> int:
    """How many processes mpirun or srun started together; 1 outside of them."""
    process = mpi_process(environ)
    return process.size if process is not None else step_size(environ) or 1


class MpiTeam:
    """The processes of an MPI communicator, as mpi4py has it."""

    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()

    def each(self, act: Callable[[], T]) -> T:
        """Every process acts; gives each its own result."""
        kept: list[T] = []
        self.gather(lambda: kept.append(act()))
        return kept[0]

    def first(self, act: Callable[[], T]) -> T:
        """The first process acts; gives all its result."""
        answers = self.gather(lambda: act() if self.rank == 0 else None)
        return answers[0]  # type: ignore[return-value]  # the others' None is not given

    def gather(self, act: Callable[[], T]) -> list[T]:
        """Every process acts; gives all the results, in the order of the processes."""
        result: T | None = None
        failure: Exception | None = None
        try:
            result = act()
        except Exception as error:  # told to all and raised below: nobody may wait for us
            failure = error
        told = None if failure is None else (_exit_code(failure), self._in_words(failure))
        answers: list[tuple[T, tuple[int, str] | None]] = self._communicator.allgather((result, told))
        if failure is not None:
            raise failure
        for _, problem in answers:
            if problem is not None:
                code, text = problem
                raise (UserError(text) if code == UserError.exit_code else MegatuneError(text))
        return [value for value, _ in answers]

    def _in_words(self, failure: Exception) -> str:
        if isinstance(failure, MegatuneError):
            return str(failure)
        return f"process {self.rank} on {socket.gethostname()}: {type(failure).__name__}: {failure}"


def _exit_code(failure: Exception) -> int:
    return failure.exit_code if isinstance(failure, MegatuneError) else MegatuneError.exit_code


def _load(expected: int) -> Any:
    try:
        return importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"{expected} processes were started to prepare data together, but mpi4py cannot be used: {error}. "
            "Install it (`pip install mpi4py`), load the module of the MPI whose mpirun this is, or install one "
            "(`pip install mpich`); or start one process."
        ) from error
