"""torchrun starts ranks again after one was killed, and they go on from the newest checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import steps_of

pytestmark = [pytest.mark.world, pytest.mark.timeout(300)]


def torchrun(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
    start = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"]
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.Popen(
        [*start, *meet, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )


def records(output_dir: Path, event: str) -> list[dict[str, object]]:
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def test_a_killed_rank_comes_back_and_the_run_ends_as_if_nothing_had_happened(run_file, output_dir, tmp_path):
    train = ["-m", "megatune", "train", run_file, "launch.nproc_per_node=2", "checkpoint.save_steps=5"]
    whole = torchrun(*train, "train.max_steps=100", f"train.output_dir={tmp_path / 'whole'}")
    printed = whole.communicate()[0]
    assert whole.returncode == 0, printed

    process = torchrun("--max-restarts", "1", *train, "train.max_steps=100")
    for _ in range(2000):
        assert process.poll() is None, process.communicate()[0]
        if (output_dir / "metrics.jsonl").is_file() and records(output_dir, "save"):
            break
        time.sleep(0.02)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    printed = process.communicate()[0]

    assert process.returncode == 0, printed
    assert len(records(output_dir, "run")) == 2
    assert records(output_dir, "resume")[0]["step"] % 5 == 0
    assert [step["loss"] for step in steps_of(output_dir)] == [
        step["loss"] for step in steps_of(tmp_path / "whole")
    ]


def test_ranks_of_torchrun_stop_before_the_job_ends(run_file, output_dir):
    overrides = ["launch.nproc_per_node=2", "train.max_steps=1000000", "slurm={signal_delay_s: 1}"]
    process = torchrun(
        "-m", "megatune", "train", run_file, *overrides, SLURM_JOB_END_TIME=str(int(time.time()) + 45)
    )
    printed = process.communicate()[0]

    assert process.returncode == 1, f"torchrun has one code for all failures: {printed}"
    stop = records(output_dir, "stop")[-1]
    assert str(stop["reason"]).startswith("the job ends in ")
    assert stop["exit_code"] == 75
    # On a machine so slow that the job ends before the first step there is nothing to save.
    assert stop["step"] == 0 or (output_dir / "checkpoints" / f"step-{stop['step']:08d}").is_dir()
