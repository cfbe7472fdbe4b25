"""A start fills in what its run file leaves open, says what it expects, and measures what came of it."""

import json
from pathlib import Path

import pytest
from tiny_runs import metrics_of, train, write_model_with_tokenizer, write_run
from worlds import Worlds

from megatune.config import load_run
from megatune.launch.calibrate import calibrate, read_run
from megatune.launch.planned_run import machine_here, plan_start
from megatune.plan.assess import assess
from megatune.plan.model_config import read_model_config
from megatune.report.estimate import compare
from megatune.report.metrics import read_metrics

pytestmark = pytest.mark.world

OPEN = {
    "parallel": {"tp_size": "auto", "zero_stage": "auto", "offload": "auto"},
    "train": {
        "per_device_train_batch_size": "auto",
        "gradient_accumulation_steps": None,
        "global_batch_size": 4,
        "max_steps": 8,
    },
    "precision": "bf16",
    "checkpoint": {"export_at_end": False, "save_at_end": False},
}


@pytest.fixture(scope="module")
def run_dir(worlds: Worlds, session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps on two ranks whose file leaves everything open."""
    folder = tmp_path_factory.mktemp("planned")
    model = write_model_with_tokenizer(session_folder, "llama")
    run_file = write_run(folder / "run.yaml", model, **OPEN)
    assert set(worlds.run(2, train, str(run_file), [])) == {0}
    return folder / "run"


def test_what_was_open_is_chosen_and_written_with_its_origin(run_dir: Path) -> None:
    resolved = (run_dir / "run.yaml").read_text()
    for line in ("zero_stage: ", "tp_size: ", "offload: none", "gradient_checkpointing: false"):
        assert any(line in one and one.endswith("# planned") for one in resolved.splitlines()), line
    loaded = load_run(run_dir / "run.yaml")
    assert loaded.auto == ()
    assert loaded.run.train.per_device_train_batch_size * (2 // loaded.run.parallel.tp_size) <= 4


def test_the_plan_is_kept_beside_it(run_dir: Path) -> None:
    plan = json.loads((run_dir / "plan.json").read_text())
    assert plan["planned"]["chosen"]["parallel.offload"] == "none"
    assert "layout(s) that fit" in plan["planned"]["why"]
    (record,) = metrics_of(run_dir, "plan")
    assert record["chosen"] == plan["planned"]["chosen"]
    assert record["device_bytes"] == plan["memory"]["device_bytes"]
    (start,) = metrics_of(run_dir, "run")
    assert (record["layout"]["tp"], record["layout"]["zero_stage"]) == (
        start["tensor_parallel"],
        start["zero_stage"],
    )


def test_the_plan_counts_the_steps_of_epochs(worlds: Worlds, session_folder: Path, tmp_path: Path) -> None:
    model = write_model_with_tokenizer(session_folder, "llama")
    run_file = write_run(tmp_path / "run.yaml", model, train={"num_train_epochs": 0.2})
    assert set(worlds.run(2, train, str(run_file), [])) == {0}
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    assert plan["forecast"]["num_steps"] == len(metrics_of(tmp_path / "run", "step")) > 0


def test_model_states_are_what_was_planned_byte_for_byte(run_dir: Path) -> None:
    found = compare(read_metrics(run_dir / "metrics.jsonl"))
    assert found is not None
    states = {one.name: one for one in found.memory if one.name in ("weights", "gradients", "optimizer")}
    for name, one in states.items():
        assert one.estimated == one.measured > 0, name
    assert found.step_seconds.measured is not None and found.step_seconds.estimated is None


def test_every_start_leaves_what_it_held(run_dir: Path) -> None:
    early, last = metrics_of(run_dir, "memory")
    assert (early["step"], last["step"]) == (3, 8)
    assert last["on_host"] is True
    assert last["peak"] > last["framework"] > 50 * 2**20
    # Activations of so small a model may fit into memory that the allocator had kept.
    assert last["after_forward"] is not None and last["after_forward"] >= 0


def test_a_calibration_is_kept_for_the_place_and_later_plans_use_it(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEGATUNE_CACHE", str(tmp_path))
    run = load_run(run_dir / "run.yaml").run
    assert read_run(run_dir).question.rates() is None, "nobody has measured bf16 on this processor"

    (fitted,) = calibrate([run_dir])

    known = fitted.calibration
    assert (known.device, known.precision, known.num_runs) == ("cpu", "bf16", 1)
    assert known.error_before is None
    assert known.error_after < 0.01, "one run is met by one constant"
    (memory,) = metrics_of(run_dir, "memory")[-1:]
    assert known.framework_bytes == memory["framework"]
    again = read_run(run_dir)
    judged = assess(again.question, again.layout)
    assert judged.step_s == pytest.approx(again.step_s, rel=0.01)
    assert judged.ledger.device["framework"] == memory["framework"]
    planned = plan_start(
        load_run(run_dir / "run.yaml"), read_model_config(run), num_nodes=1, ranks_per_node=2
    )
    assert planned.judged is not None and planned.judged.step_s == pytest.approx(judged.step_s, rel=0.01)
    assert machine_here(run, num_nodes=1, ranks_per_node=2).measured.calibration == known


def test_saves_are_not_written_behind_training_where_the_plan_leaves_no_room(
    session_folder: Path, tmp_path: Path
) -> None:
    model = write_model_with_tokenizer(session_folder, "llama")
    loaded = load_run(write_run(tmp_path / "run.yaml", model, checkpoint={"save_steps": 2}))
    small = read_model_config(loaded.run)
    huge = {**small, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 800}

    fits, refused = (plan_start(loaded, config, num_nodes=1, ranks_per_node=2) for config in (small, huge))

    assert fits.loaded.run.checkpoint.asynchronous == "auto", "the memory left at the first save decides"
    assert refused.loaded.run.checkpoint.asynchronous is False
    assert refused.loaded.origins["checkpoint.async"] == "planned"
