"""A run killed at every point of a save goes on as if nothing had happened, with the real ZeRO-3 x TP engine.

One chain of starts: each is killed at another point of a save, the next goes on from what is left. A
difference at any of them would stay in all that follows.
"""

import json
import signal
from pathlib import Path

import pytest
from kill_point_cases import POINTS, train_until_killed
from tiny_runs import metrics_of, train, write_model_with_tokenizer, write_run
from worlds import TestWorld, Worlds

from megatune.checkpoint.folders import newest_whole
from megatune.launch.checkpoints import step_of

pytestmark = [pytest.mark.world, pytest.mark.timeout(1200)]

STEPS = 1 + sum(2 if point.is_saved else 1 for point in POINTS.values()) + 1
DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
SAME = ("step", "epoch", "loss", "grad_norm", "learning_rate", "target_tokens", "tokens", "skipped")


@pytest.fixture(scope="module")
def run_file(session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(
        tmp_path_factory.mktemp("kill-points") / "run.yaml",
        write_model_with_tokenizer(session_folder, **DROPOUT),
        data={"validation": None},
        train={"max_steps": STEPS, "gradient_accumulation_steps": 1},
        checkpoint={"save_steps": 1, "save_total_limit": 1, "export_at_end": False},
    )


def newest_step(run: Path) -> int:
    newest, _ = newest_whole(run / "checkpoints")
    return 0 if newest is None else step_of(newest) or 0


def start_and_be_killed(run_file: Path, killed: Path, point_name: str, step: int) -> None:
    world = TestWorld(4)
    try:
        with pytest.raises(AssertionError):
            world.run(train_until_killed, str(run_file), [f"train.output_dir={killed}"], point_name, step)
        victim = world._processes[POINTS[point_name].rank]
        victim.join(60)
        assert victim.exitcode == -signal.SIGKILL, f"{point_name} was never reached"
    finally:
        world.close()


def files_of_ranks(run: Path) -> dict[str, str]:
    newest, _ = newest_whole(run / "checkpoints")
    assert newest is not None
    files = json.loads((newest / "manifest.json").read_text())["files"]
    return {
        name: entry["xxh3_128"] for name, entry in files.items() if name.startswith(("rank-", "training"))
    }


def test_a_run_killed_at_every_point_of_a_save_ends_bit_equal_to_one_that_was_not(
    worlds: Worlds, run_file: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert set(worlds.run(4, train, str(run_file), [f"train.output_dir={whole}"])) == {0}

    for name, point in POINTS.items():
        before = newest_step(killed)
        start_and_be_killed(run_file, killed, name, before + 2)
        assert newest_step(killed) == before + (2 if point.is_saved else 1), name
    assert set(worlds.run(4, train, str(run_file), [f"train.output_dir={killed}"])) == {0}

    found, expected = (
        [{key: entry[key] for key in SAME} for entry in metrics_of(run, "step")] for run in (killed, whole)
    )
    assert found == expected
    assert [entry["step"] for entry in found] == list(range(1, STEPS + 1))
    assert files_of_ranks(killed) == files_of_ranks(whole)
    assert [path.name for path in (killed / "checkpoints").iterdir()] == [f"step-{STEPS:08d}"]
    assert (killed / "latest").read_text() == f"step-{STEPS:08d}\n"
    assert list(killed.glob(".*.tmp")) == [], "what a killed hint left is gone"
