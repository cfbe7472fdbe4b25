"""A disk that takes its time is told beforehand, and is no hang."""

import json
import re
from pathlib import Path

import pytest
from slow_disk_cases import train_logged
from tiny_runs import metrics_of, write_model_with_tokenizer, write_run
from worlds import Worlds

from megatune.train.saves import SaveSpeed

pytestmark = pytest.mark.world


@pytest.fixture
def run_file(session_folder: Path, tmp_path: Path) -> Path:
    return write_run(
        tmp_path / "run.yaml",
        write_model_with_tokenizer(session_folder),
        data={"validation": None},
        train={"max_steps": 4},
        parallel={"tp_size": 1},
        checkpoint={"save_steps": 2, "export_at_end": False},
    )


def test_the_next_save_is_estimated_by_the_last_ones_speed() -> None:
    speed = SaveSpeed()
    assert speed.estimate_s(1000) is None
    speed.learn(None, 3.0)
    speed.learn(100, 0.0)
    assert speed.estimate_s(1000) is None
    speed.learn(500, 10.0)
    speed.learn(100, 4.0)
    assert speed.estimate_s(1000) == 40.0


def test_a_save_that_will_take_long_is_announced_with_the_speed_of_an_earlier_start(
    worlds: Worlds, run_file: Path, tmp_path: Path
) -> None:
    log, metrics = tmp_path / "log", tmp_path / "run" / "metrics.jsonl"
    assert worlds.run(2, train_logged, str(run_file), [], str(log)) == [0, 0]
    assert "takes about" not in log.read_text(), "a save of a moment is not announced"
    entries = [json.loads(line) for line in metrics.read_text().splitlines()]
    slow = [{**entry, "seconds": 400.0} if entry["event"] == "save" else entry for entry in entries]
    metrics.write_text("".join(f"{json.dumps(entry)}\n" for entry in slow))

    assert worlds.run(2, train_logged, str(run_file), ["train.max_steps=6"], str(log)) == [0, 0]

    words = " ".join(log.read_text().split())
    assert "step 6: saving " in words
    assert re.search(r" takes about [456]:\d\d min", words), "400 s for all files, less for the tensors alone"
    assert "/s, as the last one" in words


def test_beats_go_on_while_bytes_go_out_slowly_and_a_save_that_waits_says_so(
    worlds: Worlds, run_file: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    overrides = ["checkpoint.save_steps=1", "checkpoint.async=true"]
    # The save at the end waits for nothing, so that its beats are its own.
    assert worlds.run(2, train_logged, str(run_file), overrides, str(log), 2) == [0, 0]

    words = " ".join(log.read_text().split())
    assert "step 3 is due to be saved and step 2 is still being written" in words
    assert [entry["step"] for entry in metrics_of(tmp_path / "run", "save")] == [1, 2, 3, 4]
    beats = [json.loads(path.read_text()) for path in sorted((tmp_path / "run/heartbeats").glob("*.json"))]
    fast = [*worlds.run(2, train_logged, str(run_file), [*overrides, "checkpoint.resume=none"], str(log))]
    assert fast == [0, 0]
    again = [json.loads(path.read_text()) for path in sorted((tmp_path / "run/heartbeats").glob("*.json"))]
    assert all(slow["number"] > quick["number"] for slow, quick in zip(beats, again, strict=True))
