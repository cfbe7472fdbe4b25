"""Ranks that srun and mpirun start: the same numbers as those that `megatune train` starts itself."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import assert_refused, megatune, steps_of

pytestmark = [pytest.mark.world, pytest.mark.timeout(300)]

AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
ON_FEW_CORES = {"OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
TRAIN = ("-m", "megatune", "train")


def task(rank: int, num_tasks: int = 2, **changes: str) -> dict[str, str]:
    """The environment of a task of srun on this machine alone."""
    return {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_END_TIME": str(int(time.time()) + 36_000),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(num_tasks),
        "SLURM_STEP_TASKS_PER_NODE": str(num_tasks),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        **changes,
    }


def start(command: list[str], **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )


def start_tasks(run_file: Path, *overrides: str, **changes: str) -> list["subprocess.Popen[str]"]:
    command = [sys.executable, *TRAIN, str(run_file), *overrides]
    return [start(command, **task(rank, **changes)) for rank in range(2)]


@pytest.fixture
def losses_of_local_ranks(run_file: Path, tmp_path: Path) -> list[float]:
    folder = tmp_path / "local"
    done = megatune("train", run_file, "launch.nproc_per_node=2", f"train.output_dir={folder}")
    assert done.code == 0, done.text
    return [step["loss"] for step in steps_of(folder)]


def run_record(output_dir: Path) -> dict[str, object]:
    first = (output_dir / "metrics.jsonl").read_text().splitlines()[0]
    return dict(json.loads(first))


def test_tasks_of_srun_train_the_numbers_of_local_ranks(run_file, output_dir, losses_of_local_ranks):
    ranks = start_tasks(
        run_file, "launch.nproc_per_node=auto", MEGATUNE_LAUNCHER="slurm", SLURM_RESTART_COUNT="2"
    )
    printed = [rank.communicate()[0] for rank in ranks]

    assert [rank.returncode for rank in ranks] == [0, 0], printed
    assert [step["loss"] for step in steps_of(output_dir)] == losses_of_local_ranks
    record = run_record(output_dir)
    assert (record["launcher"], record["num_nodes"], record["hosts"]) == ("slurm", 1, [socket.gethostname()])
    assert (record["job_id"], record["restart_count"]) == (str(os.getpid()), 2)
    for number, text in enumerate(printed):
        assert f" rank {number} of 2 on {socket.gethostname()}: megatune train" in text.splitlines()[0]
    assert "slurm: 2 rank(s) on 1 node(s)" in printed[0]


@pytest.mark.parametrize(
    "family", [pytest.param("openmpi", id="open-mpi"), pytest.param("mpich", id="mpich")]
)
def test_ranks_of_mpirun_train_the_numbers_of_local_ranks(
    run_file, output_dir, losses_of_local_ranks, family
):
    mpirun = starter(family)
    train = [sys.executable, *TRAIN, str(run_file), "launch.launcher=mpi", "launch.nproc_per_node=auto"]
    process = start([mpirun, "-n", "2", *train], **AS_ROOT, **ON_FEW_CORES)
    printed = process.communicate()[0]

    assert process.returncode == 0, printed
    assert [step["loss"] for step in steps_of(output_dir)] == losses_of_local_ranks
    assert (run_record(output_dir)["launcher"], run_record(output_dir)["world_size"]) == ("mpi", 2)


def starter(family: str) -> str:
    """mpirun of an MPI that is installed, or the test is skipped."""
    beside = Path(sys.prefix) / "bin/mpiexec"
    found = (
        shutil.which("mpirun.openmpi") if family == "openmpi" else str(beside) if beside.exists() else None
    )
    if found is None:
        pytest.skip(f"no mpirun of {family} here (Debian's openmpi-bin, pip's mpich)")
    return found


def test_the_warning_of_the_time_limit_to_one_rank_makes_all_save_and_end_with_75(run_file, output_dir):
    ranks = start_tasks(run_file, "launch.nproc_per_node=auto", "train.max_steps=100000")
    wait_for_steps(output_dir, 2, ranks)
    ranks[1].send_signal(signal.SIGUSR2)
    printed = [rank.communicate()[0] for rank in ranks]

    assert [rank.returncode for rank in ranks] == [75, 75], printed
    newest = f"step-{steps_of(output_dir)[-1]['step']:08d}"
    assert [folder.name for folder in (output_dir / "checkpoints").iterdir()] == [newest]


def wait_for_steps(output_dir: Path, number: int, ranks: list["subprocess.Popen[str]"]) -> None:
    for _ in range(2000):
        ended = [rank for rank in ranks if rank.poll() is not None]
        assert not ended, ended[0].communicate()[0]
        if (output_dir / "metrics.jsonl").is_file() and len(steps_of(output_dir)) >= number:
            return
        time.sleep(0.1)
    raise AssertionError("the steps did not come")


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as other_program:
        other_program.bind(("", 0))
        other_program.listen()
        yield other_program.getsockname()[1]


def test_a_port_that_another_program_has_is_told_with_a_code_of_its_own(run_file, taken_port):
    done = megatune(
        "train",
        run_file,
        "launch.nproc_per_node=auto",
        **task(0, 1, MEGATUNE_LAUNCHER="slurm", MASTER_PORT=str(taken_port)),
    )

    assert done.code == 98, done.text
    assert f"megatune: rank 0 cannot listen on port {taken_port}" in done.err.splitlines()[-1]
    assert "Traceback" not in done.text


def test_a_named_launcher_that_has_not_started_the_ranks_is_refused_with_its_command(run_file, output_dir):
    assert_refused(megatune("train", run_file, "launch.launcher=slurm"), f"megatune submit {run_file}")
    assert_refused(megatune("train", run_file, "launch.launcher=mpi"), "mpirun -n N megatune train")
    in_job = megatune("train", run_file, "launch.launcher=local", **task(0))
    assert_refused(in_job, "slurm started this process, as rank 0 of 2")
    assert not output_dir.exists()


def test_a_finished_run_that_is_started_again_says_so_and_trains_nothing(run_file, output_dir):
    assert megatune("train", run_file).code == 0
    again = megatune("train", run_file)

    assert again.code == 0
    assert "nothing left to train: all 4 steps are done" in again.text
    assert len(steps_of(output_dir)) == 4
