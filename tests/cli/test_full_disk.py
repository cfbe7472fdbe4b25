"""What a disk that is really full does: a small file system, mounted in a namespace of the test's own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import steps_of, write_run

pytestmark = [pytest.mark.world, pytest.mark.timeout(300)]

MOUNTS = """
set -eu
disk=$1; shift
mount -t tmpfs -o size="$1" none "$disk"; shift
code=0; "$@" || code=$?
echo "code on the full disk: $code"
mount -o remount,size=256m "$disk"
"$@"
cp -r "$disk" "$disk-after"
"""


def can_mount() -> bool:
    """Whether this user may mount in a namespace of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    probe = "mount -t tmpfs none /mnt"
    return subprocess.run(["unshare", "--mount", "sh", "-c", probe], capture_output=True).returncode == 0


needs_mounts = pytest.mark.skipif(not can_mount(), reason="may not mount file systems")


def twice(disk: Path, size: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command on a file system of `size`, and again when that has grown; `disk`-after is what it leaves."""
    disk.mkdir()
    command = [sys.executable, "-m", "megatune", *map(str, arguments)]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", MOUNTS, "sh", str(disk), size, *command],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    )


@needs_mounts
def test_data_that_does_not_fit_is_told_with_the_fix_and_goes_on_when_there_is_room(
    tmp_path: Path, tiny_gpt2: Path
) -> None:
    rows, disk = tmp_path / "rows.jsonl", tmp_path / "disk"
    rows.write_text("".join(json.dumps({"text": f"row {number} " * 40}) + "\n" for number in range(4000)))
    run_file = write_run(tmp_path / "run.yaml", tiny_gpt2, rows, disk / "run")

    done = twice(disk, "1m", "prepare", run_file)

    assert "code on the full disk: 2" in done.stdout, done.stderr
    words = " ".join(done.stderr.split())
    assert "no space left to prepare data in" in words
    assert "It takes 5 bytes a token" in words
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr


@needs_mounts
def test_a_save_that_does_not_fit_loses_no_saved_step(
    tmp_path: Path, tiny_gpt2: Path, rows_file: Path
) -> None:
    disk = tmp_path / "disk"
    run_file = write_run(tmp_path / "run.yaml", tiny_gpt2, rows_file, disk / "run")
    settings = ["train.max_steps=6", "checkpoint.save_steps=2", "checkpoint.export_at_end=false"]

    done = twice(disk, "4m", "train", run_file, *settings)

    assert "code on the full disk: 0" not in done.stdout, done.stderr
    words = " ".join(done.stderr.split())
    assert "older ones are untouched" in words
    assert "free and a checkpoint needs" in words
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert [step["step"] for step in steps_of(tmp_path / "disk-after/run")] == [1, 2, 3, 4, 5, 6]
    first, again = done.stdout.split("code on the full disk: 1")
    assert "resumed after step 4 from" in again
    losses = [
        [line.split()[1:4] for line in part.splitlines() if line.startswith(("step 5/6", "step 6/6"))]
        for part in (first, again)
    ]
    assert losses[0] == losses[1], "the steps that were lost are taken again as they were"
    assert len(losses[1]) == 2
