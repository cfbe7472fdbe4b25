"""Ranks that no launcher of ours watches find a hang themselves: here started one by one, as srun does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import metrics_of, write_model_with_tokenizer, write_run

from megatune.launch.heartbeat import read_beats
from megatune.launch.ports import reserve_port

pytestmark = [pytest.mark.world, pytest.mark.timeout(300)]


def start_rank(run_file: Path, rank: int, port: int) -> subprocess.Popen[str]:
    place = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "megatune", "train", str(run_file)],
        env={
            **os.environ,
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            **place,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_rank_that_is_left_names_the_one_that_was_stopped(session_folder: Path, tmp_path: Path) -> None:
    run_file = write_run(
        tmp_path / "run.yaml",
        write_model_with_tokenizer(session_folder),
        data={"validation": None},
        train={"max_steps": 100000, "warmup_steps": 0},
        parallel={"tp_size": 1},
        checkpoint={"export_at_end": False, "save_steps": 3},
        health={"hang_timeout_s": 4},
    )
    with reserve_port() as port:
        ranks = [start_rank(run_file, rank, port) for rank in range(2)]
        output_dir = tmp_path / "run"
        try:
            # Saved, behind training: with nothing to go on from the exit code would be another.
            while not (output_dir / "metrics.jsonl").is_file() or not metrics_of(output_dir, "save"):
                assert ranks[0].poll() is None, ranks[0].communicate()[0]
                time.sleep(0.05)
            ranks[0].send_signal(signal.SIGSTOP)
            printed = ranks[1].communicate(timeout=100)[0]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()

    assert ranks[1].returncode == 75, printed
    stopped = read_beats(output_dir / "heartbeats", 2)[0]
    assert f"Where it hangs: {stopped} (it does not answer: stopped, or stuck)" in printed
    (bundle,) = (output_dir / "crash").iterdir()
    assert (bundle / "stack-rank-00001.txt").is_file()
