"""`megatune status` tells why real runs failed: what is planted is the failure, and the program writes the logs."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from command_line import megatune, rank_process, steps_of, write_model, write_run

from megatune.launch.ports import reserve_port

pytestmark = [pytest.mark.world, pytest.mark.timeout(300)]
CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def told(output_dir: Path) -> dict[str, object]:
    """The digest of `megatune status`."""
    done = megatune("status", output_dir, "--json")
    assert done.code == 0, done.text
    digest = json.loads(done.out)["runs"][0]["digest"]
    assert digest is not None, done.out
    return digest


def train_as_srun_does(
    run_file: Path,
    output_dir: Path,
    *overrides: str,
    port: int | None = None,
    limit: Callable[[], None] | None = None,
) -> int:
    """One rank that somebody else has started, its output in the log that srun would write."""
    logs = output_dir / "logs"
    logs.mkdir(parents=True)
    rank = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
    }
    with contextlib.ExitStack() as held:
        log = held.enter_context((logs / "rank-00000.log").open("ab"))
        port = held.enter_context(reserve_port()) if port is None else port
        log.write(f"=== {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} rank 0 of 1 on here: train ===\n".encode())
        log.flush()
        return subprocess.run(
            [sys.executable, "-m", "megatune", "train", str(run_file), *overrides],
            env={**os.environ, **CPU, **rank, "MASTER_PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=limit,
            timeout=200,
        ).returncode


def test_a_killed_rank_is_named_and_not_the_peer_that_lost_it(run_file: Path, output_dir: Path):
    command = [sys.executable, "-m", "megatune", "train", str(run_file)]
    overrides = ["launch.nproc_per_node=2", "train.max_steps=100000"]
    process = subprocess.Popen(
        [*command, *overrides],
        env={**os.environ, **CPU},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while not (output_dir / "metrics.jsonl").is_file() or not steps_of(output_dir):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        os.kill(rank_process(process.pid, 1), signal.SIGKILL)
        printed = process.communicate(timeout=100)[0]
    finally:
        process.kill()
    assert process.returncode == 1, printed

    digest = told(output_dir)

    assert (digest["class"], digest["rank"], digest["num_ranks"], digest["exit_code"]) == (
        "host_memory",
        1,
        2,
        -9,
    )
    assert digest["step"] >= 1


def test_a_rank_without_memory_says_what_it_held_and_what_would_fit(
    session_folder: Path, output_dir: Path, tmp_path: Path
):
    """Written-out attention over 4096 tokens: one block's scores are 32 x 4 x 4096 x 4096 x 4 bytes, 8 GiB of 9."""
    model = write_model(session_folder, n_positions=4096, bos_token_id=0, eos_token_id=0)
    rows = tmp_path / "long.jsonl"
    rows.write_text((json.dumps({"text": "one two three " * 4096}) + "\n") * 32)
    run_file = write_run(tmp_path / "run.yaml", model, rows, output_dir)
    settings = ("data.max_seq_length=4096", "model.attn_implementation=eager", "data.packing=false")
    batch = ("train.per_device_train_batch_size=32", "train.global_batch_size=32")

    def small_memory() -> None:  # also where the kernel promises more than there is
        resource.setrlimit(resource.RLIMIT_AS, (9 << 30, 9 << 30))

    code = train_as_srun_does(run_file, output_dir, *settings, *batch, limit=small_memory)

    log = (output_dir / "logs" / "rank-00000.log").read_text()
    assert code == 12, log
    assert "megatune: out of host memory on rank 0 (forward and backward of step 1): " in log
    assert "Traceback" not in log
    assert "longest micro-batch so far: 32 x 4096 tokens" in log
    for words in ("planned", "held", "activations", "everything else, together", "total, of"):
        assert words in log
    proposals = [line for line in log.splitlines() if "of host memory a rank by the plan" in line]
    assert len(proposals) == 3
    assert any("train.per_device_train_batch_size=" in line for line in proposals)
    digest = told(output_dir)
    assert (digest["class"], digest["rank"]) == ("host_memory", 0)
    assert sum("by the plan" in each["text"] for each in digest["evidence"]) == 3


def test_a_file_system_that_takes_no_more_is_told_as_the_disk(run_file: Path, output_dir: Path):
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    code = train_as_srun_does(run_file, output_dir, "checkpoint.export_at_end=false", limit=small_files)

    assert code == 1
    digest = told(output_dir)
    assert digest["class"] == "disk"
    assert digest["step"] == 4, "all steps were done; saving failed"


def test_a_broken_row_is_told_as_the_data(run_file: Path, output_dir: Path, tmp_path: Path):
    rows = tmp_path / "broken.jsonl"
    rows.write_text('{"text": "one"}\n{"text": \n')

    assert train_as_srun_does(run_file, output_dir, f"data.train={rows}") == 2

    digest = told(output_dir)
    assert digest["class"] == "data"
    assert f"{rows}:2" in digest["evidence"][0]["text"]


def test_a_layout_that_does_not_fit_is_told_as_the_run_file(run_file: Path, output_dir: Path):
    assert train_as_srun_does(run_file, output_dir, "parallel.tp_size=2") == 2

    assert told(output_dir)["class"] == "config"


def test_a_taken_port_is_told_as_the_port(run_file: Path, output_dir: Path):
    with socket.create_server(("", 0)) as server:
        code = train_as_srun_does(run_file, output_dir, port=server.getsockname()[1])

    assert code not in (0, 75)
    assert told(output_dir)["class"] == "port"


def test_a_loss_that_is_not_finite_is_told_as_the_numbers(run_file: Path, output_dir: Path):
    assert train_as_srun_does(run_file, output_dir, "train.learning_rate=1.0e+30", "train.max_steps=20") == 1

    digest = told(output_dir)
    assert digest["class"] == "numeric"
    assert "learning_rate" in digest["next_step"]


def test_a_run_that_ended_well_is_told_nothing(run_file: Path, output_dir: Path):
    assert train_as_srun_does(run_file, output_dir, "checkpoint.export_at_end=false") == 0

    found = json.loads(megatune("status", output_dir, "--json").out)["runs"][0]

    assert (found["state"], found["step"], found["checkpoint_step"], found["digest"]) == (
        "FINISHED",
        4,
        4,
        None,
    )
