"""`megatune train` with launcher ssh, over two names of this machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import assert_refused, megatune, steps_of, write_run
from ssh_hosts import DEAD_HOST, SshHosts, write_hostfile

EXACT = ("loss", "grad_norm", "learning_rate", "tokens", "target_tokens", "epoch")


@pytest.fixture
def over_ssh(tmp_path: Path) -> list[str]:
    return ["launch.launcher=ssh", f"launch.hostfile={write_hostfile(tmp_path / 'hosts')}"]


@pytest.mark.world
@pytest.mark.timeout(300)
def test_two_hosts_train_the_same_steps_as_two_ranks_of_one(
    ssh_hosts: SshHosts, over_ssh, run_file, tiny_gpt2, rows_file, output_dir, tmp_path
):
    local = write_run(tmp_path / "local.yaml", tiny_gpt2, rows_file, tmp_path / "local")
    assert megatune("train", local, "launch.nproc_per_node=2").code == 0

    done = megatune("train", run_file, *over_ssh, **ssh_hosts.environment)

    assert done.code == 0, done.text
    expected, found = steps_of(tmp_path / "local"), steps_of(output_dir)
    assert len(found) == 4
    for key in EXACT:
        assert [entry[key] for entry in found] == [entry[key] for entry in expected], key
    assert "rank 1 of 2 on " in (output_dir / "logs" / "rank-00001.log").read_text()
    assert (output_dir / "export" / "model.safetensors").is_file()


@pytest.mark.world
@pytest.mark.timeout(300)
def test_hosts_may_have_different_numbers_of_slots(ssh_hosts: SshHosts, run_file, output_dir, tmp_path):
    (tmp_path / "hosts").write_text("node-a slots=1\nnode-b slots=2\n")
    overrides = ["launch.launcher=ssh", f"launch.hostfile={tmp_path / 'hosts'}", "launch.nodes=2"]

    done = megatune(
        "train",
        run_file,
        *overrides,
        "launch.nproc_per_node=auto",
        "train.max_steps=1",
        **ssh_hosts.environment,
    )

    assert done.code == 0, done.text
    assert "rank 2 of 3 on " in (output_dir / "logs" / "rank-00002.log").read_text()


@pytest.mark.world
@pytest.mark.timeout(300)
def test_ctrl_c_saves_on_all_hosts_and_the_next_start_goes_on(
    ssh_hosts: SshHosts, over_ssh, run_file, output_dir
):
    command = [sys.executable, "-m", "megatune", "train", str(run_file), *over_ssh]
    launcher = subprocess.Popen(
        [*command, "train.max_steps=100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **ssh_hosts.environment},
    )
    try:
        _wait_for_steps(output_dir, 3, launcher)
        launcher.send_signal(signal.SIGINT)
        said = launcher.communicate(timeout=120)[0]
    finally:
        launcher.kill()
    assert launcher.returncode == 75, said
    assert "Go on with: megatune train" in said
    stopped_at = len(steps_of(output_dir))

    done = megatune(
        "train", run_file, *over_ssh, f"train.max_steps={stopped_at + 2}", **ssh_hosts.environment
    )

    assert done.code == 0, done.text
    assert [entry["step"] for entry in steps_of(output_dir)] == list(range(1, stopped_at + 3))


def _wait_for_steps(output_dir: Path, number: int, launcher: subprocess.Popen[str]) -> None:
    last = time.monotonic() + 120
    while not (output_dir / "metrics.jsonl").is_file() or len(steps_of(output_dir)) < number:
        assert launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < last, "the steps did not come"
        time.sleep(0.1)


def test_a_run_file_that_contradicts_its_hostfile_is_refused(over_ssh, run_file, output_dir):
    done = megatune("train", run_file, *over_ssh, "launch.nodes=3", "launch.nproc_per_node=2")
    assert_refused(done, "2 problems", "launch.nodes is 3", "names 2 hosts", "are 1 on node-a, 1 on node-b")
    assert not output_dir.exists()


def test_a_wrong_hostfile_is_refused_with_its_lines(run_file, tmp_path):
    (tmp_path / "hosts").write_text("node-a slots=1\nnode-a slots=1\nnode-b\n")
    done = megatune("train", run_file, "launch.launcher=ssh", f"launch.hostfile={tmp_path / 'hosts'}")
    assert_refused(
        done, "2 problems", "line 2: node-a stands in line 1", "line 3: 'node-b' is not of the form"
    )


def test_ssh_without_a_hostfile_and_a_hostfile_without_ssh_are_refused(run_file, tmp_path):
    done = megatune("train", run_file, "launch.launcher=ssh")
    assert_refused(done, "give launch.hostfile")
    done = megatune("train", run_file, f"launch.hostfile={tmp_path / 'hosts'}", "launch.forward_env=[A]")
    assert_refused(done, "launch.hostfile is for launch.launcher = ssh", "launch.forward_env is for")


def test_a_host_that_does_not_answer_is_named(ssh_hosts: SshHosts, run_file, tmp_path):
    (tmp_path / "hosts").write_text(f"node-a slots=1\n{DEAD_HOST} slots=1\n")
    overrides = ["launch.launcher=ssh", f"launch.hostfile={tmp_path / 'hosts'}"]
    done = megatune("train", run_file, *overrides, **ssh_hosts.environment)
    assert done.code == 1
    assert "1 of 2 hosts cannot take part; no rank was started" in done.text
    assert f"{DEAD_HOST}: ssh ended with exit code 255" in done.text
    assert "Traceback" not in done.text
