"""Other ways to start ranks on the cluster: all of them train the numbers of a local run."""

import sys
from pathlib import Path

import pytest
from cluster_runs import Cluster, losses, train_here
from lab import CONTROLLER
from tiny_runs import metrics_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
TWO_BY_TWO = ("-N2", "-n4", "--ntasks-per-node=2", "--mem=5000M", "-c1")


@pytest.fixture
def local_losses(cluster: Cluster) -> list[float]:
    return losses(train_here(cluster.run_file("here")))


def start(cluster: Cluster, launcher: str, *command: object, host: str = CONTROLLER) -> Path:
    """Start a run with `command` in front of the interpreter; gives its folder."""
    run_file = prepared(cluster, launcher)
    train = [sys.executable, "-m", "megatune", "train", run_file, f"launch.launcher={launcher}", "slurm=null"]
    cluster.lab.run(host, [*command, *train], cwd=cluster.folder, timeout_s=240, environment=AS_ROOT)
    return run_file.parent / "run"


def prepared(cluster: Cluster, name: str) -> Path:
    """The run file of a run whose data is prepared, which ranks on several nodes do not do."""
    run_file = cluster.run_file(name)
    cluster.megatune("prepare", run_file)
    return run_file


def test_ranks_on_two_nodes_refuse_data_that_is_not_prepared(cluster: Cluster):
    run_file = cluster.run_file()
    train = [sys.executable, "-m", "megatune", "train", run_file, "slurm=null"]

    done = cluster.lab.run(
        CONTROLLER,
        ["srun", "--kill-on-bad-exit=1", *TWO_BY_TWO, *train],
        cwd=cluster.folder,
        check=False,
        timeout_s=120,
    )

    assert "task 0: Exited with exit code 2" in done.stderr, "srun's own code is that of the ranks it killed"
    command = f"megatune prepare {run_file} slurm=null"
    assert f"`{command}`" in done.stderr
    assert f"`srun --mpi=pmix --ntasks=N {command}`" in done.stderr


@pytest.mark.parametrize(
    ("launcher", "command"),
    [
        ("slurm", ("srun", *TWO_BY_TWO)),
        ("slurm", ("srun", *TWO_BY_TWO, "--mpi=pmix")),
        ("mpi", ("salloc", *TWO_BY_TWO, "mpirun", "-n", "4")),
    ],
    ids=["srun", "srun-pmix", "mpirun"],
)
def test_ranks_of_a_foreign_launcher_train_the_numbers_of_local_ranks(
    cluster: Cluster, local_losses: list[float], launcher: str, command: tuple[str, ...]
):
    output_dir = start(cluster, launcher, *command)

    assert losses(output_dir) == local_losses
    run = metrics_of(output_dir, "run")[-1]
    assert (run["launcher"], run["world_size"], run["num_nodes"]) == (launcher, 4, 2)


def test_torchrun_over_nodes_trains_the_numbers_of_local_ranks(cluster: Cluster, local_losses: list[float]):
    run_file = prepared(cluster, "torchrun")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "n1:29400", "--rdzv-id", "test", "-m", "megatune"]
    train = ["train", run_file, "launch.launcher=torchrun", "slurm=null"]
    nodes = ["srun", "-N2", "-n2", "-w", "n1,n2", "--mem=5000M", "-c2"]

    cluster.lab.run(CONTROLLER, [*nodes, *torchrun, *meet, *train], cwd=cluster.folder, timeout_s=240)

    assert losses(run_file.parent / "run") == local_losses


def test_ssh_over_nodes_trains_the_numbers_of_local_ranks(cluster: Cluster, local_losses: list[float]):
    run_file = cluster.run_file("ssh", launch={"nproc_per_node": "auto"})
    hostfile = cluster.folder / "hosts"
    hostfile.write_text("n1 slots=2\nn2 slots=2\n")
    ssh = ["launch.launcher=ssh", f"launch.hostfile={hostfile}", "slurm=null"]

    cluster.lab.run(
        "n1",
        [sys.executable, "-m", "megatune", "train", run_file, *ssh],
        cwd=cluster.folder,
        timeout_s=240,
    )

    assert losses(run_file.parent / "run") == local_losses
