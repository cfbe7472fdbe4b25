import pytest

from megatune.errors import ConfigError
from megatune.launch.launchers import refuse_other_launcher
from megatune.launch.rank_info import RankInfo


def rank_of(launcher):
    return RankInfo(
        rank=1,
        local_rank=1,
        world_size=4,
        local_world_size=4,
        master_addr="n1",
        master_port=20000,
        launcher=launcher,
    )


def check(asked, rank, *, in_allocation=False, num_nodes=1):
    refuse_other_launcher(asked, rank, run_file="run.yaml", num_nodes=num_nodes, in_allocation=in_allocation)


@pytest.mark.parametrize(
    ("asked", "started_by"),
    [
        ("auto", None),
        ("local", None),
        ("ssh", None),
        ("auto", "slurm"),
        ("auto", "torchrun"),
        ("slurm", "slurm"),
        ("mpi", "mpi"),
        ("torchrun", "torchrun"),
        ("ssh", "ssh"),
        ("local", "local"),
        ("slurm", "environment"),
    ],
)
def test_the_launcher_that_was_asked_for_is_taken(asked, started_by):
    check(asked, rank_of(started_by) if started_by else None)


@pytest.mark.parametrize(
    ("asked", "in_allocation", "command"),
    [
        ("slurm", False, "`megatune submit run.yaml`"),
        ("slurm", True, "`srun --ntasks-per-node=N --kill-on-bad-exit=1 megatune train run.yaml`"),
        ("mpi", False, "`mpirun -n N megatune train run.yaml`"),
        ("torchrun", False, "`torchrun --nproc_per_node N -m megatune train run.yaml`"),
    ],
)
def test_a_launcher_that_has_not_started_this_process_is_told_with_its_command(asked, in_allocation, command):
    with pytest.raises(ConfigError) as told:
        check(asked, None, in_allocation=in_allocation)
    assert f"launch.launcher is {asked}, but {asked} has not started this process" in str(told.value)
    assert command in str(told.value)


def test_torchrun_over_nodes_is_told_with_its_meeting_point():
    with pytest.raises(ConfigError, match="torchrun --nnodes 2 --nproc_per_node N --rdzv_backend c10d"):
        check("torchrun", None, num_nodes=2)


@pytest.mark.parametrize(
    ("asked", "started_by"), [("local", "slurm"), ("mpi", "slurm"), ("slurm", "torchrun")]
)
def test_a_rank_of_another_launcher_is_told_who_started_it(asked, started_by):
    with pytest.raises(
        ConfigError, match=f"{started_by} started this process, as rank 1 of 4.*launcher=auto"
    ):
        check(asked, rank_of(started_by))
