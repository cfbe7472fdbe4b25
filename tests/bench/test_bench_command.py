"""`megatune bench` on a suite of its own: real ranks, a real peer, a record that another run is held against."""

import json
import subprocess
import sys

import pytest
from tiny_models import TINY

pytestmark = [pytest.mark.world, pytest.mark.timeout(600)]

SUITE = """
about: a tiny model beside a bare DeepSpeed engine
rounds: 1
baseline: deepspeed zero3
work: {model: MODEL, max_seq_length: 32, micro_batch: 1, ranks: 2, precision: fp32, warmup_steps: 1, steps: 2}
cases:
  - {name: deepspeed zero3, peer: deepspeed-zero3}
  - {name: megatune zero3, train: []}
  - {name: megatune at another rate, train: [train.learning_rate=0.01]}
  - {name: broken, train: [parallel.tp_size=3]}
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict]:
    """A finished run of the suite and the record it left."""
    folder = tmp_path_factory.mktemp("bench")
    model_type, config = TINY["llama"]
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text(json.dumps({"model_type": model_type, **config}))
    (folder / "tiny.yaml").write_text(SUITE.replace("MODEL", str(folder / "model")))
    command = [
        sys.executable,
        "-m",
        "megatune",
        "bench",
        str(folder / "tiny.yaml"),
        "--results",
        str(folder / "results"),
    ]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=500, check=False)
    (path,) = (folder / "results").glob("tiny-*.json")
    return done, json.loads(path.read_text())


def case(record: dict, name: str) -> dict:
    return next(entry for entry in record["cases"] if entry["name"] == name)


def test_a_peer_and_megatune_train_the_same_and_are_compared(bench):
    done, record = bench
    ours = case(record, "megatune zero3")
    assert ours["failure"] is None, done.stderr
    ratio = ours["to_baseline"]
    assert ratio["cpu_seconds_per_token"]["median"] > 0
    assert len(ours["runs"][0]["losses"]) == 3
    assert len(ours["runs"][0]["step_seconds"]) == 2
    assert "stage 3" in case(record, "deepspeed zero3")["engine"]


def test_memory_is_told_by_kind_and_what_is_not_measured_is_none(bench):
    _, record = bench
    for name in ("megatune zero3", "deepspeed zero3"):
        entry = case(record, name)
        assert entry["peak_rss_bytes"] > 100 * 2**20
        assert entry["runs"][0]["peak_rss_bytes"] == entry["peak_rss_bytes"]
        assert (entry["peak_allocated_bytes"] is None) == (not record["machine"]["gpus"])
        assert (entry["peak_reserved_bytes"] is None) == (not record["machine"]["gpus"])
        assert "peak_memory_bytes" not in entry


def test_other_work_is_not_compared(bench):
    _, record = bench
    assert "not compared: the loss of step" in case(record, "megatune at another rate")["to_baseline"]


def test_a_case_that_fails_is_told_and_the_others_go_on(bench):
    done, record = bench
    assert "tp_size" in case(record, "broken")["failure"]
    assert done.returncode == 1
    assert json.loads(done.stdout)["cases"] == record["cases"]


def test_the_record_says_what_it_was_measured_on(bench):
    _, record = bench
    assert record["machine"]["cpu_cores"] >= 1
    assert record["versions"]["torch"]
    assert record["cases"][0]["work"]["steps"] == 2
