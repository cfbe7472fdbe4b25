from dataclasses import replace
from pathlib import Path

import pytest

from megatune.errors import LaunchError
from megatune.launch.mpi import Meeting
from megatune.launch.rank_info import RankInfo
from megatune.launch.ranks import (
    cache_folder,
    discover_rank,
    export_rank,
    extension_folder_override,
    log_title,
    rank_environment,
    rank_log,
    rank_log_environment,
    visible_devices,
)

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node01",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}
TWO_TASKS = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_STEP_NODELIST": "n1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
}
MET = Meeting(rank=3, size=4, local_rank=1, local_size=2, num_nodes=2, address="n1", port=20005)


def test_outside_a_launched_job_there_is_no_rank():
    assert discover_rank({"HOME": "/root", "SLURM_STEP_NUM_TASKS": "1"}) is None


def test_a_rank_of_torchrun_finds_itself():
    assert discover_rank(TORCHRUN) == RankInfo(
        rank=3,
        local_rank=1,
        world_size=4,
        local_world_size=2,
        master_addr="node01",
        master_port=29500,
        launcher="torchrun",
    )


@pytest.mark.parametrize(
    "missing", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"]
)
def test_a_half_set_environment_is_refused_and_names_what_is_missing(missing):
    environ = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(LaunchError, match=f" {missing} missing.*unset"):
        discover_rank(environ)


def test_an_empty_variable_counts_as_missing():
    with pytest.raises(LaunchError, match="LOCAL_RANK missing"):
        discover_rank({**TORCHRUN, "LOCAL_RANK": ""})


def test_all_impossible_values_are_told_at_once():
    with pytest.raises(LaunchError) as told:
        discover_rank({**TORCHRUN, "RANK": "two", "MASTER_PORT": "-1"})
    assert "RANK='two'" in str(told.value)
    assert "MASTER_PORT='-1'" in str(told.value)


def test_a_rank_beyond_the_world_is_refused():
    with pytest.raises(LaunchError, match=r"RANK=4 must be below WORLD_SIZE=4"):
        discover_rank({**TORCHRUN, "RANK": "4"})


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_PROCID is not set"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_RANK is not set"),
        ({"PMI_SIZE": "4"}, "PMI_RANK is not set"),
    ],
)
def test_copies_started_without_ranks_are_refused_instead_of_training_alone(environ, missing):
    with pytest.raises(LaunchError, match=missing):
        discover_rank(environ)


def test_torchrun_inside_a_slurm_step_wins_over_slurms_variables():
    found = discover_rank({**TWO_TASKS, **TORCHRUN, "MEGATUNE_LAUNCHER": "slurm"})
    assert found == discover_rank(TORCHRUN)


def test_one_task_of_srun_is_a_shell_unless_the_script_or_the_run_file_says_slurm():
    one = {**TWO_TASKS, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    one |= {"SLURM_STEP_TASKS_PER_NODE": "1"}

    assert discover_rank(one) is None
    by_script = discover_rank({**one, "MEGATUNE_LAUNCHER": "slurm"})
    assert by_script == discover_rank(one, launcher="slurm")
    assert by_script is not None
    assert (by_script.rank, by_script.world_size, by_script.launcher) == (0, 1, "slurm")


def test_the_shell_of_salloc_and_the_batch_script_are_no_ranks():
    allocation = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "MASTER_PORT": "20007"}
    shell = {**TWO_TASKS, "SLURM_STEP_ID": "4294967290"}

    assert discover_rank({**allocation, "MEGATUNE_LAUNCHER": "slurm"}) is None
    assert discover_rank(shell) is None


def test_tasks_of_srun_with_mpi_are_asked_through_mpi_when_the_run_file_says_so():
    asked = []

    def meet():
        asked.append("asked")
        return MET

    found = discover_rank({**TWO_TASKS, "PMIX_RANK": "1"}, launcher="mpi", meet=meet)

    assert found is not None
    assert (found.launcher, found.master_addr, found.num_nodes) == ("mpi", "n1", 2)
    assert asked == ["asked"]


def test_a_rank_of_mpirun_inside_a_slurm_job_is_not_taken_for_the_task_of_its_helper():
    open_mpi = {
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    }
    found = discover_rank({**TWO_TASKS, **open_mpi}, meet=lambda: MET)

    assert found is not None
    assert (found.rank, found.world_size, found.launcher) == (3, 4, "mpi")


def test_an_mpi_library_that_does_not_know_the_starter_is_named():
    process = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}
    with pytest.raises(LaunchError, match="rank 2 of 4, but the MPI library of mpi4py says rank 3 of 4"):
        discover_rank(process, meet=lambda: MET)


def test_mpi_is_not_needed_where_the_address_is_given():
    def meet():
        raise AssertionError("MPI was asked")

    hydra = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
    found = discover_rank({**hydra, "MASTER_ADDR": "n1", "MASTER_PORT": "20001"}, meet=meet)

    assert found == RankInfo(
        rank=3,
        local_rank=1,
        world_size=4,
        local_world_size=2,
        master_addr="n1",
        master_port=20001,
        launcher="mpi",
    )


def test_an_exported_rank_is_what_torch_and_deepspeed_read(monkeypatch):
    for name in (*TORCHRUN, "MEGATUNE_LAUNCHER"):
        monkeypatch.setenv(name, "to be replaced")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    rank = discover_rank(TWO_TASKS)
    assert rank is not None

    export_rank(rank)

    assert discover_rank() == replace(rank, num_nodes=None)


def test_the_log_of_a_submitted_rank_is_titled_with_its_number():
    script = {"MEGATUNE_LAUNCHER": "slurm"}
    assert log_title({**TWO_TASKS, **script}) == "rank 1 of 2"
    assert log_title(TWO_TASKS) is None, "srun by hand shows all ranks in one place"
    assert log_title(script) is None


def test_what_the_launcher_sets_is_what_a_rank_discovers(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(name, raising=False)
    info = RankInfo(
        rank=1,
        local_rank=1,
        world_size=2,
        local_world_size=2,
        master_addr="127.0.0.1",
        master_port=23456,
        launcher="local",
    )
    environment = rank_environment(info, threads=3, extra={"DS_ACCELERATOR": "cpu"})
    assert discover_rank(environment) == info
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["DS_ACCELERATOR"] == "cpu"


def test_threads_that_the_user_has_set_are_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    info = discover_rank(TORCHRUN)
    assert info is not None
    assert rank_environment(info, threads=3)["OMP_NUM_THREADS"] == "7"


def test_the_cache_follows_megatune_cache_then_xdg_then_home():
    assert cache_folder({"MEGATUNE_CACHE": "/fast/mt", "XDG_CACHE_HOME": "/c"}) == Path("/fast/mt")
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/megatune")
    assert cache_folder({}) == Path.home() / ".cache" / "megatune"


@pytest.mark.parametrize(
    ("value", "devices"),
    [("0,1", ["0", "1"]), ("", []), ("-1", []), ("2,-1,3", ["2"]), ("GPU-ab", ["GPU-ab"])],
)
def test_visible_devices_end_where_cuda_ends_them(value, devices):
    assert visible_devices({"CUDA_VISIBLE_DEVICES": value}) == devices


def test_unset_settings_are_unknown():
    assert visible_devices({}) is None
    assert extension_folder_override({}) is None
    assert rank_log({}) is None


def test_a_rank_learns_where_its_log_is():
    assert rank_log(rank_log_environment(Path("/run/logs/rank-00000.log"))) == Path(
        "/run/logs/rank-00000.log"
    )
