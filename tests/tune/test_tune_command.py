"""`megatune tune` with real trainings: one that cannot load, one that hangs, a kill of the tune, and its winner."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import metrics_of, write_model_with_tokenizer, write_run

from megatune.launch.heartbeat import read_beats

pytestmark = [pytest.mark.world, pytest.mark.timeout(900)]

STEPS = 60
"""Of some milliseconds each: long enough to be met in the middle."""


@pytest.fixture
def tuned(tmp_path: Path, session_folder: Path) -> list[str]:
    """The command of a tune over attention kernels, one of which is not installed; with dropout in the model."""
    model = write_model_with_tokenizer(session_folder / "tuned-model", resid_pdrop=0.1)
    run_file = write_run(
        tmp_path / "run.yaml",
        model,
        parallel={"tp_size": 1},
        launch={"nproc_per_node": 1},
        train={"gradient_accumulation_steps": None, "global_batch_size": 8, "per_device_train_batch_size": 8},
        health={"hang_timeout_s": 12.0},
        precision="bf16",
    )
    options = ["--try", "model.attn_implementation=flash_attention_2,sdpa,eager", "--trials", "7", "--json"]
    options += ["--try", "train.per_device_train_batch_size=8", "--fix", "model.gradient_checkpointing"]
    options += ["--fix", "reduce_bucket_size", "--fix", "train.chunked_loss", "--steps", str(STEPS)]
    return [sys.executable, "-m", "megatune", "tune", str(run_file), *options]


def wait_for(met: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 240
    while not met():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def signal_rank_of(trial: Path, number: int) -> None:
    """Send a signal to the rank of a trial once it trains."""

    def trains() -> bool:
        return (trial / "metrics.jsonl").exists() and len(metrics_of(trial, "step")) > 3

    wait_for(trains, f"steps of {trial}")
    (beat,) = read_beats(trial / "heartbeats", 1)
    os.kill(beat.pid, number)


def test_a_failure_a_hang_and_a_kill_are_no_end_of_a_tune_and_its_winner_trains(tuned, tmp_path):
    trials = tmp_path / "run/tune/trials"
    with subprocess.Popen(tuned, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        signal_rank_of(trials / "00002", signal.SIGSTOP)
        wait_for((trials / "00003/metrics.jsonl").exists, "a fourth trial")
        first.kill()
        told = first.communicate()[1]
    assert "trial 1: refused" in told

    done = subprocess.run(tuned, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    outcomes = [(trial["outcome"], trial["candidate"]) for trial in found["trials"]]
    assert [outcome for outcome, _ in outcomes] == ["ok", "refused", "hang", "interrupted", "ok", "ok", "ok"]
    assert outcomes[3][1] == outcomes[4][1], "what was cut off is tried again"
    assert "flash_attention_2" in found["results"][1]["values"]["model.attn_implementation"]
    assert "Where it hangs: rank 0" in found["trials"][2]["why"]
    assert found["done"]
    assert found["best"]["candidate"] not in (outcomes[1][1], outcomes[2][1])
    losses = [[step["loss"] for step in metrics_of(trials / f"{n:05d}", "step")][:20] for n in (0, 4)]
    assert losses[0] == pytest.approx(losses[1], rel=2**-8), "dropout, which differs, is off"
    assert (tmp_path / "run/tune/tune.png").read_bytes().startswith(b"\x89PNG")

    cache = {**os.environ, "MEGATUNE_CACHE": str(tmp_path / "cache")}
    results = [*tuned, "--results", "--calibrate"]
    shown = subprocess.run(results, capture_output=True, text=True, check=True, env=cache)
    (learnt,) = json.loads(shown.stdout)["calibration"]["calibrations"]
    assert (learnt["device"], learnt["precision"], learnt["num_runs"]) == ("cpu", "bf16", 4)
    assert "flops_per_s" in (tmp_path / "cache/calibration.json").read_text()

    again = [
        sys.executable,
        "-m",
        "megatune",
        "train",
        str(tmp_path / "run/tune/best.yaml"),
        "train.max_steps=2",
    ]
    trained = subprocess.run(
        [*again, "evaluate=null", "data.validation=null"], capture_output=True, text=True
    )
    assert trained.returncode == 0, trained.stderr
    assert len(metrics_of(tmp_path / "run", "step")) == 2


@pytest.mark.parametrize("option", [["--dry-run"], ["--slurm", "1"]])
def test_the_planner_learns_nothing_from_trials_that_have_not_been_made(tuned, option):
    done = subprocess.run([*tuned, "--calibrate", *option], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "give it with --results when the tune is done" in done.stderr
