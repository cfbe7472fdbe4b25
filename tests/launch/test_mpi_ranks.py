from dataclasses import astuple

import pytest

from megatune.errors import LaunchError
from megatune.launch.mpi_ranks import mpi_process

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "3",
}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
HELPER = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}
PMI2_TASK = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "PMI_RANK": "3", "PMI_SIZE": "4"}


@pytest.mark.parametrize(
    ("environ", "process"),
    [
        (OPEN_MPI, (3, 4, 1, 2, "libmpi.so.40")),
        (HYDRA, (3, 4, 1, 2, "libmpi.so.12")),
        ({**OPEN_MPI, **HELPER}, (3, 4, 1, 2, "libmpi.so.40")),
        ({**HYDRA, **HELPER}, (3, 4, 1, 2, "libmpi.so.12")),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, (0, 2, None, None, None)),
        (PMI2_TASK, None),
        ({"PMIX_RANK": "0", "SLURM_STEP_ID": "0"}, None),
        ({}, None),
    ],
    ids=[
        "open-mpi",
        "hydra",
        "mpirun-in-slurm",
        "hydra-in-slurm",
        "bare-pmi",
        "srun-pmi2",
        "srun-pmix",
        "none",
    ],
)
def test_a_process_of_mpirun_is_known_by_its_variables(environ, process):
    found = mpi_process(environ)
    assert (found and astuple(found)) == process


def test_impossible_variables_are_told_at_once():
    with pytest.raises(LaunchError) as told:
        mpi_process({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "-1"})
    assert "OMPI_COMM_WORLD_RANK=4" in str(told.value)
    assert "OMPI_COMM_WORLD_LOCAL_RANK='-1'" in str(told.value)
