"""benchmarks/tune.py: the tune, the grid in one world of ranks, and the record."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.world, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).parents[2] / "benchmarks/tune.py"


def test_a_small_grid_is_measured_and_recorded_with_its_machine_and_commit(tmp_path: Path) -> None:
    knobs = [
        "--try",
        "train.per_device_train_batch_size=1,2,4,8",
        "--try",
        "parallel.leaf_modules=true,false",
    ]

    subprocess.run(
        [sys.executable, str(SCRIPT), *knobs, "--rounds", "1", "--out", str(tmp_path)],
        check=True,
        timeout=800,
    )

    record = json.loads((tmp_path / "tune-llama-1m.json").read_text())
    assert record["machine"]["cpu"] and record["commit"]
    assert record["knobs"] == knobs[1::2]
    verdict = record["verdict"]
    assert (verdict["candidates"], verdict["trials_of_the_tune"]) == (6, 2)
    assert len(record["grid"]) == 6
    assert verdict["slower_than_best_in_rounds"] >= 0
