"""The memory an export needs is bounded by its largest tensor, not by the model or a file."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import write_tiny_model
from written_large import LARGEST_BYTES, MODEL_BYTES, write_large_checkpoint

_MEASURE = """
import sys, torch
from pathlib import Path
from megatune.checkpoint.export import export_checkpoint

def private_bytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

checkpoint, target, dtype, shard_bytes = sys.argv[1:]
torch.ones(1000).to(torch.bfloat16).t()
before = private_bytes("RssAnon")
Path("/proc/self/clear_refs").write_text("5")  # begin the peak anew
export_checkpoint(Path(checkpoint), Path(target), dtype=getattr(torch, dtype), shard_bytes=int(shard_bytes))
print(private_bytes("VmHWM") - private_bytes("RssFile") - before)
"""
_SLACK_BYTES = 24 * 2**20
"""Blocks of 16 MiB, headers, and what the allocator keeps."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    return write_large_checkpoint(folder, write_tiny_model("gpt2", folder, n_layer=1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_tensor_and_its_transpose_bound_the_memory(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    arguments = [str(checkpoint), str(tmp_path / "out"), dtype, str(10**12)]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *arguments], capture_output=True, text=True, check=True
    )

    peak = int(done.stdout.split()[-1])

    assert MODEL_BYTES > 8 * LARGEST_BYTES
    assert LARGEST_BYTES < peak < 2 * LARGEST_BYTES + _SLACK_BYTES
