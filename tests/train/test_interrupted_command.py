"""`megatune train` as a user runs it: real ranks, Ctrl-C, a second start, an export."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import metrics_of, write_model_with_tokenizer, write_run
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.world, pytest.mark.timeout(300)]


def start(run_file: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "megatune", "train", str(run_file), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    )


def wait_for_steps(output_dir: Path, number: int, process: subprocess.Popen[str]) -> None:
    for _ in range(2000):
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()[0]}")
        if (output_dir / "metrics.jsonl").is_file() and len(metrics_of(output_dir, "step")) >= number:
            return
        time.sleep(0.1)
    raise AssertionError("the steps did not come")


def test_ctrl_c_saves_and_exits_75_and_the_next_start_finishes(session_folder: Path, tmp_path: Path) -> None:
    run_file = write_run(
        tmp_path / "run.yaml",
        write_model_with_tokenizer(session_folder),
        checkpoint={"export_at_end": True, "save_steps": 2},
        train={"num_train_epochs": 1000},
        launch={"nproc_per_node": 2},
    )
    output_dir = tmp_path / "run"

    process = start(run_file)
    wait_for_steps(output_dir, 4, process)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=120)[0]

    assert process.returncode == 75, printed
    assert "Go on with: megatune train" in printed
    assert "Traceback" not in printed
    stopped_at = metrics_of(output_dir, "stop")[-1]["step"]
    newest = output_dir / "checkpoints" / f"step-{stopped_at:08d}"
    assert (newest / "manifest.json").is_file()
    assert not (output_dir / "export").exists(), "the run is not finished"

    unfinished = shutil.copytree(newest, newest.with_name(f"step-{stopped_at + 1:08d}"))
    (unfinished / "manifest.json").unlink()
    process = start(run_file, f"train.max_steps={stopped_at + 3}")
    printed = process.communicate(timeout=200)[0]

    assert process.returncode == 0, printed
    assert f"passed over {unfinished}: no manifest.json" in " ".join(printed.split())
    assert [entry["step"] for entry in metrics_of(output_dir, "step")] == list(range(1, stopped_at + 4))
    assert metrics_of(output_dir, "resume")[-1]["step"] == stopped_at
    model = AutoModelForCausalLM.from_pretrained(output_dir / "export")
    ids = AutoTokenizer.from_pretrained(output_dir / "export")("one two", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(ids).logits.isfinite().all()
