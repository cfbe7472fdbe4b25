"""Ranks that are killed or stopped in the middle of real training."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import steps_of, write_run
from planted_secrets import SECRETS, files_with_secrets

pytestmark = [pytest.mark.world, pytest.mark.timeout(300)]
CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
STEPS = 40


def started(run_file: Path, output_dir: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    given = [
        f"train.output_dir={output_dir}",
        f"train.max_steps={STEPS}",
        "launch.nproc_per_node=2",
        "checkpoint.save_steps=5",
        "checkpoint.export_at_end=false",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "megatune", "train", str(run_file), *given, *overrides],
        env={**os.environ, **CPU, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_save(process: subprocess.Popen[str], output_dir: Path) -> None:
    """Until a checkpoint stands: it is written behind the steps that follow."""
    while not list((output_dir / "checkpoints").glob("step-????????/manifest.json")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


def pids(output_dir: Path) -> list[int]:
    beats = sorted((output_dir / "heartbeats").glob("rank-*.json"))
    return [json.loads(path.read_text())["pid"] for path in beats]


def told(output_dir: Path) -> list[tuple[object, ...]]:
    return [(e["step"], e["loss"], e["grad_norm"], e["learning_rate"]) for e in steps_of(output_dir)]


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        printed = process.communicate(timeout=200)[0]
    finally:
        process.kill()
    return process.returncode, printed


def test_after_a_rank_was_killed_the_run_ends_with_the_losses_of_one_that_was_not(
    run_file: Path, tmp_path: Path
) -> None:
    shm_before = set(Path("/dev/shm").iterdir())
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, printed = finished(started(run_file, whole))
    assert code == 0, printed

    process = started(run_file, killed, "launch.max_restarts=1")
    wait_for_save(process, killed)
    os.kill(pids(killed)[1], signal.SIGKILL)
    code, printed = finished(process)

    assert code == 0, printed
    assert "rank 1 of 2 failed first" in printed
    assert "(restart 1 of 1)" in printed
    assert told(killed) == told(whole)
    assert len(told(killed)) == STEPS
    assert not [
        path for path in Path("/dev/shm").iterdir() if path not in shm_before and "torch" in path.name
    ]


@dataclass(frozen=True)
class HungRun:
    """A run one of whose ranks was stopped, with secrets in its environment."""

    output_dir: Path
    ranks: list[int]
    code: int
    printed: str


@pytest.fixture(scope="module")
def hung(tiny_gpt2: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> HungRun:
    folder = tmp_path_factory.mktemp("hung")
    output_dir = folder / "run"
    run_file = write_run(folder / "run.yaml", tiny_gpt2, rows_file, output_dir)
    overrides = ("health.hang_timeout_s=4", "train.max_steps=100000")
    process = started(run_file, output_dir, *overrides, **SECRETS)
    wait_for_save(process, output_dir)
    ranks = pids(output_dir)
    os.kill(ranks[1], signal.SIGSTOP)
    code, printed = finished(process)
    return HungRun(output_dir, ranks, code, printed)


def test_a_rank_that_is_stopped_while_training_is_named(hung: HungRun) -> None:
    assert hung.code == 75, hung.printed
    words = " ".join(hung.printed.split())
    assert "hang: no progress for 4 s. Where it hangs: rank 1 on" in words
    assert "(it does not answer: stopped, or stuck)" in words
    (bundle,) = (hung.output_dir / "crash").iterdir()
    assert {"stack-rank-00000.txt", "heartbeats.json", "metrics-tail.jsonl", "env.txt"} <= {
        path.name for path in bundle.iterdir()
    }
    stack = (bundle / "stack-rank-00000.txt").read_text()
    assert "megatune/engine/meeting" in stack or "torch/distributed" in stack, stack
    assert not any(Path(f"/proc/{pid}").exists() for pid in hung.ranks)


def test_no_secret_of_the_environment_is_in_any_file_of_a_run_its_checkpoints_or_its_crash_bundle(
    hung: HungRun,
) -> None:
    names = {path.name for path in hung.output_dir.rglob("*")}
    assert {"env.txt", "run.yaml", "metrics.jsonl", "manifest.json", "heartbeats.json"} <= names

    assert files_with_secrets(hung.output_dir) == []
    assert "planted0" not in hung.printed
