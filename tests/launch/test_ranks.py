from pathlib import Path

import pytest

from megatune.errors import LaunchError
from megatune.launch.ranks import (
    RankInfo,
    cache_folder,
    discover_rank,
    extension_folder_override,
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
    ("variable", "starter"), [("SLURM_STEP_NUM_TASKS", "srun"), ("OMPI_COMM_WORLD_SIZE", "mpirun")]
)
def test_copies_started_without_ranks_are_refused_instead_of_training_alone(variable, starter):
    with pytest.raises(LaunchError, match=f"{starter} started 4 processes"):
        discover_rank({variable: "4"})


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
