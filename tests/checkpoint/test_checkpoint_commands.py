"""`megatune checkpoint list`, `verify` and `prune`, as a user calls them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from written_checkpoints import write_checkpoint

from megatune.checkpoint.layout import Layout


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with four checkpoints: step 10 is kept for ever, 20 is the best one, 40 is of four ranks."""
    checkpoints = tmp_path / "run" / "checkpoints"
    write_checkpoint(checkpoints, 10, kept_for_ever=True)
    write_checkpoint(checkpoints, 20)
    write_checkpoint(checkpoints, 30)
    write_checkpoint(checkpoints, 40, layout=Layout(data_parallel=2, tensor_parallel=2), best_step=20)
    return tmp_path / "run"


def checkpoint(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "megatune", "checkpoint", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def answer(*arguments: object) -> Any:
    code, out, err = checkpoint(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def steps(run: Path) -> list[int]:
    return sorted(int(folder.name[-8:]) for folder in (run / "checkpoints").iterdir())


def test_list_tells_step_layout_size_and_what_is_wrong(run: Path) -> None:
    (run / "checkpoints" / "step-00000030" / "manifest.json").unlink()

    found = {entry["step"]: entry for entry in answer("list", run)["checkpoints"]}

    assert list(found) == [40, 30, 20, 10]
    assert found[40]["layout"] == "dp=2 x tp=2"
    folder = run / "checkpoints" / "step-00000040"
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert found[40]["num_bytes"] == sum(sizes.values()) - sizes[folder / "manifest.json"]
    assert [step for step, entry in found.items() if entry.get("best")] == [20]
    assert [step for step, entry in found.items() if entry.get("kept for ever")] == [10]
    assert not found[30]["whole"]
    assert "never finished" in found[30]["problem"]
    code, out, _ = checkpoint("list", run)
    assert code == 0
    assert "kept for ever" in out
    assert "dp=2 x tp=2" in out


def test_verify_is_content_with_whole_checkpoints_and_names_the_broken_file(run: Path) -> None:
    assert answer("verify", run)["passed"] is True
    damaged = run / "checkpoints" / "step-00000040" / "rank-00002.safetensors"
    flip(damaged)

    code, out, _ = checkpoint("verify", run, "--json")
    found = {entry["folder"]: entry["problems"] for entry in json.loads(out)["checkpoints"]}

    assert code == 1
    assert [folder for folder, problems in found.items() if problems] == [str(damaged.parent)]
    assert found[str(damaged.parent)] == [f"{damaged} has changed since it was saved (its hash differs)."]
    assert checkpoint("verify", damaged.parent)[0] == 1
    assert checkpoint("verify", run / "checkpoints" / "step-00000030")[0] == 0


def test_prune_keeps_the_newest_the_best_and_those_for_ever_and_a_dry_run_removes_nothing(run: Path) -> None:
    doomed = [str(run / "checkpoints" / "step-00000030")]

    dry = answer("prune", run, "--keep", 1, "--dry-run")
    assert (dry["removed"], dry["dry_run"], steps(run)) == (doomed, True, [10, 20, 30, 40])

    done = answer("prune", run, "--keep", 1)
    assert (done["removed"], done["dry_run"], steps(run)) == (doomed, False, [10, 20, 40])
    assert done["num_bytes"] == dry["num_bytes"] > 0
    assert answer("prune", run, "--keep", 1)["removed"] == []


def test_prune_counts_only_those_that_verify_and_leaves_damaged_ones_alone(run: Path) -> None:
    damaged = run / "checkpoints" / "step-00000040" / "rank-00002.safetensors"
    flip(damaged)

    done = answer("prune", run, "--keep", 2)

    assert (done["removed"], steps(run)) == ([], [10, 20, 30, 40]), (
        "30 and 20 are the newest two that are good"
    )
    assert done["problems"] == [f"{damaged} has changed since it was saved (its hash differs)."]
    assert "left alone" in checkpoint("prune", run, "--keep", 1)[1]
    assert steps(run) == [10, 30, 40], "nothing that verifies names the best"


def test_a_file_that_cannot_be_read_stops_neither_list_nor_prune(run: Path) -> None:
    path = run / "checkpoints" / "step-00000040" / "training.json"
    path.write_bytes(b"x" * path.stat().st_size)

    assert len(answer("list", run)["checkpoints"]) == 4
    assert answer("prune", run, "--keep", 1)["problems"] != []


def test_verify_passes_over_no_folder_and_has_no_verdict_on_nothing(run: Path) -> None:
    newest = run / "checkpoints" / "step-00000040"
    (newest / "manifest.json").unlink()

    code, out, _ = checkpoint("verify", run)
    assert code == 1
    assert "never finished" in " ".join(out.split())
    assert checkpoint("verify", newest)[0] == 1
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    code, _, err = checkpoint("verify", run)
    assert (code, "no checkpoint yet" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "nowhere"], "nowhere is no run folder"),
        (["verify", "nowhere"], "nowhere is no run folder"),
        (["prune", "nowhere", "--keep", "1"], "nowhere is no run folder"),
        (["prune", "nowhere", "--keep", "0"], "--keep"),
        (["prune", "nowhere"], "--keep"),
    ],
)
def test_what_cannot_be_meant_exits_2_with_a_message(arguments: list[str], words: str) -> None:
    code, _, err = checkpoint(*arguments)

    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_the_commands_answer_without_torch(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from megatune.cli import checkpoint as c;"
        f"run = Path({str(run)!r}); c.list_checkpoints(run, as_json=True);"
        "c.verify_checkpoints(run, as_json=True); c.prune_checkpoints(run, keep=1, dry_run=True, as_json=True);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
