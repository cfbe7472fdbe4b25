"""Losses that are no good: what counts as one, and what the run then does about it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from health_cases import train_with_bad_steps
from tiny_runs import metrics_of, write_model_with_tokenizer, write_run
from worlds import Worlds

from megatune.config.health import HealthSection
from megatune.train.health import judge_loss, remember_loss


def health(**keys: Any) -> HealthSection:
    return HealthSection(**{"on_spike": "warn", "spike_window": 6, "spike_factor": 2.0, **keys})


@pytest.mark.parametrize(
    ("recent", "loss", "kind"),
    [
        ([1.0] * 6, 2.0, None),
        ([1.0] * 6, 2.1, "spike"),
        ([1.0] * 2, 99.0, None),
        ([1.0] * 3, 99.0, "spike"),
        ([9.0] * 5 + [1.0] * 6, 2.1, "spike"),
        ([1.0] * 6, math.nan, "nonfinite"),
        ([], math.inf, "nonfinite"),
    ],
)
def test_a_loss_is_judged_by_the_median_of_the_window(
    recent: list[float], loss: float, kind: str | None
) -> None:
    finding = judge_loss(health(), recent, loss)
    assert (finding.kind if finding else None) == kind


def test_spikes_are_not_looked_for_unless_asked() -> None:
    assert judge_loss(health(on_spike="off"), [1.0] * 6, 99.0) is None
    assert remember_loss(health(on_spike="off"), (), 1.0, None) == ()


def test_a_spike_that_is_left_out_does_not_move_the_median() -> None:
    skipping = health(on_spike="skip")
    finding = judge_loss(skipping, [1.0] * 6, 9.0)
    assert remember_loss(skipping, (1.0,) * 6, 9.0, finding) == (1.0,) * 6
    assert (
        remember_loss(health(), (1.0,) * 6, 9.0, finding and judge_loss(health(), [1.0] * 6, 9.0))[-1] == 9.0
    )


@pytest.fixture(scope="module")
def run_file(session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(
        tmp_path_factory.mktemp("health") / "run.yaml",
        write_model_with_tokenizer(session_folder),
        data={"validation": None},
        train={"max_steps": 12, "warmup_steps": 0},
        parallel={"tp_size": 1},
        checkpoint={"export_at_end": False, "save_steps": 4},
    )


def start(worlds: Worlds, run_file: Path, folder: Path, bad: dict[int, str], *overrides: str) -> list[str]:
    given = [f"train.output_dir={folder}", *overrides]
    return worlds.run(2, train_with_bad_steps, str(run_file), given, bad)


@pytest.mark.world
def test_a_step_that_is_not_finite_is_left_out_and_changes_no_weight(
    worlds: Worlds, run_file: Path, tmp_path: Path
) -> None:
    ends = start(worlds, run_file, tmp_path, {5: "nan"}, "health.on_nonfinite=skip")

    assert {end.partition(" ")[0] for end in ends} == {"0"}
    assert [(e["step"], e["kind"], e["remedy"]) for e in metrics_of(tmp_path, "fault")] == [
        (5, "nonfinite", "skip")
    ]
    steps = metrics_of(tmp_path, "step")
    assert [entry["skipped"] for entry in steps] == [number == 5 for number in range(1, 13)]
    hashes = json.loads(ends[0].partition(" ")[2])
    assert hashes["5"] == hashes["4"] != hashes["6"]


@pytest.mark.world
def test_steps_left_out_are_bounded(worlds: Worlds, run_file: Path, tmp_path: Path) -> None:
    bad = dict.fromkeys(range(3, 9), "nan")
    (words,) = set(
        start(worlds, run_file, tmp_path, bad, "health.on_nonfinite=skip", "health.max_bad_steps=3")
    )
    assert "4 steps in a row would be left out; health.max_bad_steps is 3" in words


@pytest.mark.world
@pytest.mark.parametrize("kind", ["nan", "spike"])
def test_a_rollback_goes_on_from_the_checkpoint_behind_the_data(
    worlds: Worlds, run_file: Path, tmp_path: Path, kind: str
) -> None:
    spikes = ["health.on_spike=rollback", "health.spike_window=5", "health.on_nonfinite=rollback"]
    ends = start(worlds, run_file, tmp_path, {6: kind}, *spikes)

    assert {end.partition(" ")[0] for end in ends} == {"0"}
    (fault,) = metrics_of(tmp_path, "fault")
    assert (fault["step"], fault["back_to_step"], fault["remedy"]) == (6, 4, "rollback")
    (lost,) = metrics_of(tmp_path, "lost")
    assert (lost["step"], lost["steps"]) == (4, 2)
    assert [entry["step"] for entry in metrics_of(tmp_path, "step")] == list(range(1, 13))
    # Steps 5 and 6 now see what would have been the data of 7 and 8.
    epochs = [entry["epoch"] for entry in metrics_of(tmp_path, "step")]
    assert epochs[4] - epochs[3] == pytest.approx(3 * (epochs[1] - epochs[0]))


@pytest.mark.world
def test_rollbacks_are_bounded(worlds: Worlds, run_file: Path, tmp_path: Path) -> None:
    keys = ["health.on_nonfinite=rollback", "health.max_rollbacks=1"]
    (words,) = set(start(worlds, run_file, tmp_path, {6: "nan", 8: "nan"}, *keys))
    assert "health.max_rollbacks is 1" in words


@pytest.mark.world
@pytest.mark.parametrize(("on_spike", "code"), [("skip", "0"), ("warn", "0"), ("stop", "error:")])
def test_a_spike_is_met_as_asked(
    worlds: Worlds, run_file: Path, tmp_path: Path, on_spike: str, code: str
) -> None:
    ends = start(
        worlds, run_file, tmp_path, {8: "spike"}, f"health.on_spike={on_spike}", "health.spike_window=5"
    )
    assert {end.partition(" ")[0] for end in ends} == {code}
    if on_spike == "stop":
        assert "health.on_spike is stop" in ends[0]
        return
    hashes = json.loads(ends[0].partition(" ")[2])
    assert (hashes["8"] == hashes["7"]) == (on_spike == "skip")
    assert [e["kind"] for e in metrics_of(tmp_path, "fault")] == ["spike"]


@pytest.mark.world
def test_the_median_goes_on_exactly_over_a_stop(worlds: Worlds, run_file: Path, tmp_path: Path) -> None:
    keys = ["health.on_spike=skip", "health.spike_window=10", "train.lr_scheduler_type=constant"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    start(worlds, run_file, whole, {8: "spike"}, *keys)
    start(worlds, run_file, parts, {}, *keys, "train.max_steps=6")
    start(worlds, run_file, parts, {2: "spike"}, *keys)

    def told(folder: Path) -> list[tuple[object, ...]]:
        return [(e["step"], e["loss"], e["grad_norm"], e["skipped"]) for e in metrics_of(folder, "step")]

    assert told(parts) == told(whole)
    (fault,), (same,) = metrics_of(whole, "fault"), metrics_of(parts, "fault")
    assert fault["reason"] == same["reason"], "the median is over the losses before the stop, too"
    assert fault["step"] == 8
