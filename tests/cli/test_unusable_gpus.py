"""GPUs that the driver lists and torch cannot use: told, and never trained beside on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import assert_refused, megatune

TORCHRUN = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29511",
    "TORCHELASTIC_RUN_ID": "none",
}


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a machine whose driver lists two GPUs; torch sees none of them here."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A100'; echo 'GPU 1: NVIDIA A100'\n")
    tool.chmod(0o755)
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    asked = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"],
        capture_output=True,
        text=True,
    )
    if asked.stdout.strip() == "True":
        pytest.skip("torch can use the GPUs of this machine")
    return {"PATH": f"{tool.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize("launched", [{}, TORCHRUN], ids=["our own launcher", "a rank of torchrun"])
def test_gpus_that_torch_cannot_use_are_refused_with_both_fixes(run_file, output_dir, two_gpus, launched):
    done = megatune("train", run_file, "launch.nproc_per_node=2", **two_gpus, **launched)

    assert_refused(done, "2 GPU(s)", "driver", "torch 2", "pytorch.org", "DS_ACCELERATOR=cpu")
    assert not (output_dir / "checkpoints").exists()


def test_the_user_can_keep_the_run_off_the_gpus(run_file, output_dir, two_gpus):
    overrides = ["train.max_steps=1", "checkpoint.export_at_end=false"]
    done = megatune("train", run_file, *overrides, **two_gpus, DS_ACCELERATOR="cpu")

    assert done.code == 0, done.text
    assert "gpus: 0" in (output_dir / "env.txt").read_text()
