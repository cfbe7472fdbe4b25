"""Where a search may begin: published fine-tunings, and what a range test shows."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import metrics_of, write_model_with_tokenizer, write_run

from megatune.config import load_run
from megatune.errors import ConfigError
from megatune.tune.search.begin import search_folder
from megatune.tune.search.range_test import has_broken, judge_range
from megatune.tune.search.rules import PUBLISHED, batch_by_rule, rate_by_rule
from megatune.tune.search.space import load_space
from megatune.tune.search.suggest import suggest
from megatune.tune.trial import StopSignals

RATES = [1e-6 * 10 ** (step / 20) for step in range(101)]


def curve(best_rate: float, *, depth: float = 1.0) -> list[float | None]:
    """Losses that fall until `best_rate` and then rise, with the noise of batches."""
    found: list[float | None] = []
    for step, rate in enumerate(RATES):
        distance = math.log10(rate / best_rate)
        slope = 1 / (1 + math.exp(3 * (distance + 1)))
        rise = 0.0 if distance < 0.5 else 4 * (distance - 0.5)
        found.append(2.0 + depth * slope + rise + 0.03 * math.sin(7.0 * step))
    return found


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda row: row.name)
def test_the_rule_of_rates_goes_through_what_was_published(published):
    ratio = rate_by_rule(int(published.num_params)) / published.learning_rate
    assert 1 / 1.8 < ratio < 1.8


@pytest.mark.parametrize("published", [row for row in PUBLISHED if row.rows_seen], ids=lambda row: row.name)
def test_the_rule_of_batches_is_within_a_factor_of_two_of_what_was_published(published):
    assert 0.5 <= batch_by_rule(int(published.rows_seen), 1) / published.batch <= 2


def test_batches_by_rule_stay_within_what_was_published():
    assert batch_by_rule(10, 1) == 8
    assert batch_by_rule(10**9, 3) == 128


@pytest.mark.parametrize("best_rate", [1e-4, 1e-3])
def test_a_range_test_finds_a_rate_a_tenth_of_the_best_one_in_spite_of_noise(best_rate):
    found = judge_range(RATES, curve(best_rate))
    assert best_rate / 10 / 4 < found.suggested_rate < best_rate / 10 * 4
    assert found.steepest_rate < found.lowest_rate
    assert found.broken_rate > found.lowest_rate


def test_losses_that_do_not_fall_suggest_nothing_and_say_so():
    found = judge_range(RATES, curve(1e-3, depth=0.0))
    assert found.suggested_rate is None
    assert "more steps" in found.why


def test_a_loss_that_is_no_number_is_the_end_of_a_range_test():
    losses = curve(1e-3)
    broken = [*losses[:70], None]
    assert has_broken(broken)
    assert not has_broken(losses[:40])
    found = judge_range(RATES[:71], broken)
    assert found.broken_rate == RATES[70]
    with pytest.raises(ValueError, match="without a loss"):
        judge_range(RATES, [None])


def test_too_few_steps_are_refused(tmp_path):
    run_file = tmp_path / "run.yaml"
    run_file.write_text("model: {model_name_or_path: m}\ndata: {train: d.jsonl}\ntrain: {output_dir: r}\n")
    folder = search_folder(load_run(run_file))
    with pytest.raises(ConfigError, match="--range-steps is 3"), StopSignals() as stop:
        suggest(run_file, [], folder, 3, stop)


@pytest.mark.world
def test_a_real_range_test_is_drawn_and_its_space_can_be_searched(tmp_path: Path, session_folder: Path):
    model = write_model_with_tokenizer(session_folder / "suggested-model")
    run_file = write_run(
        tmp_path / "run.yaml",
        model,
        parallel={"tp_size": 1},
        launch={"nproc_per_node": 1},
        train={"gradient_accumulation_steps": 4},
    )
    command = [
        sys.executable,
        "-m",
        "megatune",
        "search",
        str(run_file),
        "--suggest",
        "--range-steps",
        "60",
        "--json",
    ]

    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    steps = metrics_of(tmp_path / "run/search/range-test", "step")
    assert found["range_test"]["losses"] == [step["loss"] for step in steps]
    assert steps[0]["learning_rate"] == pytest.approx(1e-6)
    assert steps[-1]["learning_rate"] > 100 * steps[0]["learning_rate"]
    assert found["by_rule"]["learning_rate"] == rate_by_rule(found["num_params"])
    assert found["range_test"]["suggested_rate"] is not None
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    axes = load_space(Path(found["space"]), load_run(run_file)).axes
    assert [axis.key for axis in axes] == ["train.learning_rate", "train.global_batch_size"]
    assert not (tmp_path / "run/search/range-test/checkpoints/step-00000060").exists()
