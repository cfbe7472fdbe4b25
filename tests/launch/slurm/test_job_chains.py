"""How many jobs a run needs one after the other."""

import json

import pytest

from megatune.errors import ConfigError
from megatune.launch.slurm.chain import START_UP_S, Eta, choose_chain, eta_of, standing_of
from megatune.report.standing import Standing

HOUR = 3600


def test_a_number_is_taken_as_it_is():
    assert choose_chain("3", eta=None, limit_s=None, signal_delay_s=300).num_jobs == 3


@pytest.mark.parametrize(
    ("eta_s", "num_jobs"), [(1, 1), (HOUR - 300 - START_UP_S, 1), (HOUR, 2), (10 * HOUR, 12)]
)
def test_auto_counts_the_seconds_of_a_job_that_train(eta_s, num_jobs):
    chain = choose_chain("auto", eta=Eta(seconds=eta_s, source="by --eta"), limit_s=HOUR, signal_delay_s=300)

    assert chain.num_jobs == num_jobs
    assert f"a job of {HOUR} s trains for {HOUR - 300 - START_UP_S} s" in chain.reason


@pytest.mark.parametrize("asked", ["0", "-1", "many", "101", "٣"])
def test_what_is_no_number_of_jobs_is_refused(asked):
    with pytest.raises(ConfigError, match="auto, or a number from 1 to 100"):
        choose_chain(asked, eta=None, limit_s=None, signal_delay_s=0)


def test_auto_says_all_that_it_needs():
    with pytest.raises(ConfigError) as caught:
        choose_chain("auto", eta=None, limit_s=None, signal_delay_s=300)

    assert "--eta" in str(caught.value)
    assert "slurm.time" in str(caught.value)


def test_a_job_too_short_to_train_is_refused():
    with pytest.raises(ConfigError, match="no time to train"):
        choose_chain("auto", eta=Eta(seconds=HOUR, source="by --eta"), limit_s=400, signal_delay_s=300)


def test_a_chain_beyond_all_measure_is_refused():
    with pytest.raises(ConfigError, match="above the limit of 100"):
        choose_chain("auto", eta=Eta(seconds=1e9, source="by --eta"), limit_s=HOUR, signal_delay_s=300)


def test_the_user_wins_over_earlier_steps_and_they_over_the_forecast():
    known = Standing(step=1, total_steps=2, step_seconds=5.0)

    assert eta_of("01:30:00", known, 70.0) == Eta(seconds=5400, source="by --eta")
    assert eta_of(None, known, 70.0) == Eta(seconds=5.0, source="by the steps of an earlier start")
    assert eta_of(None, Standing(), 70.0) == Eta(seconds=70.0, source="by the planner's forecast")
    assert eta_of(None, Standing(), None) is None


@pytest.mark.parametrize("text", ["soon", "1h", "", "-5", "1:2:3:4", "9" * 5000])
def test_a_time_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="--eta is"):
        eta_of(text, Standing(), None)


def test_an_earlier_start_of_the_run_says_how_long_the_rest_takes(tmp_path):
    lines = [{"event": "run", "total_steps": 100}]
    lines += [{"event": "step", "step": step, "step_seconds": 2.0} for step in range(1, 41)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    eta = eta_of(None, standing_of(path), 9.0)
    assert eta is not None and eta.seconds == 120.0
    assert eta_of(None, standing_of(tmp_path / "none.jsonl"), None) is None
