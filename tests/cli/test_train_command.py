"""`megatune train` from outside: every way to start it, and every way in which it can be cut off."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from command_line import (
    assert_nothing_looks_complete,
    megatune,
    rank_process,
    steps_of,
    write_model,
    write_run,
)

pytestmark = pytest.mark.world

EXACT = ("loss", "grad_norm", "learning_rate", "tokens", "target_tokens", "epoch")


@pytest.fixture(scope="module")
def started_here(tiny_gpt2: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of four steps on two ranks that `megatune train` started."""
    folder = tmp_path_factory.mktemp("local")
    run_file = write_run(folder / "run.yaml", tiny_gpt2, rows_file, folder / "run")
    done = megatune("train", run_file, "launch.nproc_per_node=2")
    assert done.code == 0, done.text
    return folder / "run"


def test_a_run_leaves_checkpoint_export_and_metrics(started_here):
    assert [path.name for path in (started_here / "checkpoints").glob("step-*")] == ["step-00000004"]
    assert (started_here / "export" / "model.safetensors").is_file()
    assert [entry["step"] for entry in steps_of(started_here)] == [1, 2, 3, 4]


def test_torchrun_trains_the_same_steps_as_our_own_launcher(
    started_here, tiny_gpt2, rows_file, output_dir, tmp_path
):
    run_file = write_run(tmp_path / "run.yaml", tiny_gpt2, rows_file, output_dir)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "megatune", "train", str(run_file), "launch.nproc_per_node=2"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected, found = steps_of(started_here), steps_of(output_dir)
    assert len(found) == 4
    for key in EXACT:
        assert [entry[key] for entry in found] == [entry[key] for entry in expected], key


def test_what_was_exported_answers_prompts(started_here):
    done = megatune("generate", started_here / "export", "-p", "Once upon", "--max-new-tokens", 4, "--json")
    assert done.code == 0, done.text
    (answer,) = json.loads(done.out)["answers"]
    assert answer["prompt"] == "Once upon"


def test_a_run_folder_exports_in_another_dtype_and_never_over_another_folder(started_here, tmp_path):
    target = tmp_path / "out"
    assert megatune("export", started_here, target, "--dtype", "fp16").code == 0
    assert json.loads((target / "config.json").read_text())["dtype"] == "float16"
    before = (target / "model.safetensors").stat().st_mtime_ns

    again = megatune("export", started_here, target)

    assert again.code == 2
    assert "already there" in again.text
    assert "Traceback" not in again.text
    assert (target / "model.safetensors").stat().st_mtime_ns == before


def test_the_run_file_of_init_trains_once_its_paths_are_filled_in(
    session_folder, rows_file, output_dir, tmp_path
):
    llama = write_model(session_folder, "llama", max_position_embeddings=1024)
    written = megatune("init", "--task", "text")
    assert written.code == 0, written.text
    run_file = tmp_path / "run.yaml"
    run_file.write_text(written.out)
    paths = {
        "model.model_name_or_path": llama,
        "data.train": rows_file,
        "data.validation": rows_file,
        "train.output_dir": output_dir,
    }

    done = megatune("train", run_file, *(f"{key}={path}" for key, path in paths.items()))

    assert done.code == 0, done.text
    run = yaml.safe_load((output_dir / "run.yaml").read_text())
    assert run["precision"] == "bf16"
    assert len(steps_of(output_dir)) >= 1


def test_a_killed_rank_ends_the_run_within_seconds_and_is_named(run_file, output_dir):
    overrides = ["launch.nproc_per_node=2", "train.max_steps=100000"]
    command = [sys.executable, "-m", "megatune", "train", str(run_file), *overrides]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        _wait_for(lambda: (output_dir / "metrics.jsonl").is_file() and len(steps_of(output_dir)) > 3)
        os.kill(rank_process(launcher.pid, 1), signal.SIGKILL)
        killed_at = time.monotonic()
        said = launcher.communicate(timeout=60)[0]
    finally:
        launcher.kill()

    assert time.monotonic() - killed_at < 30
    assert launcher.returncode == 1
    assert "rank 1 of 2 failed first: killed (SIGKILL)" in said
    assert "rank-00001.log" in said
    assert not list((output_dir / "checkpoints").iterdir())
    assert not (output_dir / "export").exists()


def _wait_for(condition, timeout_s: float = 240) -> None:
    last = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < last, "the run did not come so far"
        time.sleep(0.2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB: room for the data of a run, not for a checkpoint."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("only root may mount the small file system that fills up")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_names_the_room_that_is_missing_and_leaves_no_checkpoint(run_file, small_disk):
    output_dir = small_disk / "run"

    done = megatune("train", run_file, f"train.output_dir={output_dir}", "checkpoint.save_steps=2")

    assert done.code == 1, done.text
    assert "the checkpoint could not be saved" in done.text
    assert "free" in done.text
    assert str(output_dir) in done.text
    assert not list(output_dir.glob("checkpoints/step-????????"))
    assert not (output_dir / "export").exists()


def test_a_disk_too_full_for_the_data_is_the_users_to_solve(run_file, small_disk):
    (small_disk / "ballast").write_bytes(b"\0" * (2**20 - 3 * 4096))
    output_dir = small_disk / "run"

    done = megatune("train", run_file, f"train.output_dir={output_dir}")

    assert done.code == 2, done.text
    assert "Traceback" not in done.text
    assert "train.output_dir" in done.text
    assert_nothing_looks_complete(output_dir)
