"""`megatune search` with real trainings: a stop in the middle, a trial that diverges, and the file of the best."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import metrics_of, write_model_with_tokenizer, write_run

from megatune.config import load_run

pytestmark = [pytest.mark.world, pytest.mark.timeout(900)]


@pytest.fixture
def searched(tmp_path: Path, session_folder: Path) -> list[str]:
    """The command of a grid over a good rate and one that no weight survives."""
    model = write_model_with_tokenizer(session_folder / "searched-model")
    run_file = write_run(
        tmp_path / "run.yaml",
        model,
        parallel={"tp_size": 1},
        launch={"nproc_per_node": 1},
        train={"max_steps": 4, "max_grad_norm": 0},
        evaluate={"eval_steps": 2},
    )
    space = tmp_path / "space.yaml"
    space.write_text("train.learning_rate: [1e-2, 1e+30]\n")
    options = ["--space", str(space), "--sampler", "grid", "--json"]
    return [sys.executable, "-m", "megatune", "search", str(run_file), *options]


def test_a_search_that_was_stopped_goes_on_and_a_diverged_trial_is_a_result(searched, tmp_path):
    folder = tmp_path / "run/search"
    metrics = folder / "trials/00000/metrics.jsonl"
    with subprocess.Popen(searched, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        while first.poll() is None and not (metrics.exists() and metrics_of(metrics.parent, "step")):
            time.sleep(0.05)
        first.send_signal(signal.SIGHUP)
        told = first.communicate()[1]
    assert first.returncode == 75, told
    assert "the same command goes on" in told

    done = subprocess.run(searched, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    good, bad = found["trials"]
    assert (good["state"], good["values"]) == ("done", {"train.learning_rate": 0.01})
    assert [entry["step"] for entry in metrics_of(metrics.parent, "step")] == [1, 2, 3, 4]
    assert good["loss"] == metrics_of(metrics.parent, "eval")[-1]["loss"]
    assert (bad["state"], bad["failure"]["class"]) == ("failed", "numeric")
    assert found["best"]["number"] == 0
    assert found["importance"] is None
    best = load_run(folder / "best.yaml").run
    assert best.train.learning_rate == 0.01
    assert best.train.output_dir == tmp_path / "run"
    assert "# search: best of 0.01, 1e+30" in (folder / "best.yaml").read_text()
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "trials/00000/checkpoints").iterdir()), "of the best trial they are kept"
    assert not (folder / "trials/00001/checkpoints").exists()
