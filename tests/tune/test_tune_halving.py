"""Which trial is next, and which layout wins, over measurements that a table gives."""

import json
from pathlib import Path

import pytest
from recorded_tune import LOSSES, Replay, good, write_run

from megatune.tune.layouts.candidates import Candidate
from megatune.tune.layouts.halving import Done, Next, Wait, rungs
from megatune.tune.layouts.journal import INTERRUPTED, Ended, Trial
from megatune.tune.layouts.measure import Measure

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECORDS = sorted((BENCHMARKS / "results").glob("tune-llama-1m*.json"))
RECORDED_MODEL = BENCHMARKS / "models/llama-1m"
KNOBS = (
    "parallel.tp_size=1,2",
    "train.per_device_train_batch_size=1,2,4,8",
    "model.gradient_checkpointing=false,true",
    "parallel.leaf_modules=true,false",
)
FIXED = (
    "reduce_bucket_size",
    "stage3_prefetch_bucket_size",
    "parallel.zero_stage",
    "parallel.keep_gathered",
    "train.chunked_loss",
)


def made_up(candidate: Candidate) -> float:
    """Seconds a token that no planner knows: tensor parallelism and small micro-batches are slow here."""
    layout = candidate.layout
    seconds = 1e-3 * (1.6 if layout.tensor_parallel == 2 else 1.0) * (1 + 0.8 / layout.micro_batch)
    seconds *= 1.3 if layout.gradient_checkpointing else 1.0
    return seconds * (1.2 if candidate.values["parallel.leaf_modules"] == "false" else 1.0)


def replay(tmp_path: Path, end_of, **options) -> Replay:
    asked = {"tried": KNOBS, "fixed": FIXED, "num_trials": 8, **options}
    return Replay(write_run(tmp_path), end_of, **asked)


@pytest.mark.parametrize("num_trials", range(2, 40))
def test_rungs_shrink_to_two_and_spend_no_more_than_there_is(num_trials):
    sizes = rungs(num_trials)
    assert sum(sizes) <= num_trials
    assert all(size >= 2 for size in sizes[1:])
    assert sizes == sorted(sizes, reverse=True)


def test_the_first_trial_is_the_runs_own_layout_and_the_best_is_found_in_a_fraction_of_the_grid(tmp_path):
    tune = replay(tmp_path, lambda candidate, _: good(made_up(candidate)))
    trials = tune.run()

    assert (trials[0].candidate, trials[0].rung) == (0, 0)
    candidates = tune.definition.space.candidates
    assert len(candidates) > 2 * len(trials)
    assert made_up(tune.best) == min(made_up(candidate) for candidate in candidates)
    assert {trial.steps for trial in trials if trial.rung} == {2 * tune.definition.rules.steps}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_measurements_of_a_real_grid_lead_near_its_best_in_a_quarter_of_its_trials(tmp_path, path):
    record = json.loads(path.read_text())
    measures = {
        tuple(sorted(one["values"].items())): Measure.from_object(record["grid"][str(one["number"])])
        for one in record["candidates"]
    }

    known = set(record["candidates"][0]["values"])

    def values_of(candidate: Candidate) -> tuple[tuple[str, str], ...]:
        """Without knobs that are newer than the record: they stay as the run has them."""
        return tuple(sorted((key, value) for key, value in candidate.values.items() if key in known))

    def measured_in_the_grid(candidate: Candidate, rung: int) -> Ended:
        del rung
        return Ended(outcome="ok", why=None, seconds=1.0, measure=measures[values_of(candidate)])

    run_file = write_run(tmp_path, model={"model_name_or_path": str(RECORDED_MODEL)})
    run_file.write_text(
        run_file.read_text().replace("per_device_train_batch_size: 4", "per_device_train_batch_size: 1")
    )
    asked = {"tried": tuple(record["knobs"]), "fixed": (*FIXED, "parallel.offload"), "clock": "cpu"}
    tune = Replay(run_file, measured_in_the_grid, num_trials=len(measures) // 4, **asked)

    assert len(tune.run()) <= len(measures) / 4
    seconds = {values: measure.token_s("cpu", 2) for values, measure in measures.items()}
    assert seconds[values_of(tune.best)] <= 1.03 * min(seconds.values())


def test_a_layout_that_fails_and_one_with_another_loss_never_win_however_fast(tmp_path):
    def end_of(candidate: Candidate, rung: int) -> Ended:
        del rung
        if candidate.layout.micro_batch == 4 and candidate.number:
            return Ended(outcome="memory", why="gpu_memory: it did not fit", seconds=1.0, measure=None)
        if candidate.layout.gradient_checkpointing:
            return good(made_up(candidate) / 10, losses=(LOSSES[0], LOSSES[1] * 1.01, LOSSES[2]))
        return good(made_up(candidate))

    tune = replay(tmp_path, end_of, num_trials=12)
    trials = tune.run()

    assert not tune.best.layout.gradient_checkpointing
    refused = {t.candidate for t in trials if not t.ended.measure or t.ended.measure.losses[1] != LOSSES[1]}
    assert refused, "some were tried"
    assert not [trial for trial in trials if trial.rung and trial.candidate in refused], "and none went up"


def test_memory_as_the_objective_finds_the_smallest_and_a_sum_finds_a_compromise(tmp_path):
    def end_of(candidate: Candidate, rung: int) -> Ended:
        del rung
        size = 10**9 + 10**9 * candidate.layout.micro_batch // (1 + candidate.layout.gradient_checkpointing)
        return good(made_up(candidate), peak_bytes=size)

    smallest = replay(tmp_path, end_of, objective="memory")
    smallest.run()
    assert smallest.best.layout.micro_batch == 1
    assert smallest.best.layout.gradient_checkpointing

    both = replay(tmp_path, end_of, objective="tokens_per_second=0.5,memory=0.5", num_trials=12)
    both.run()

    def worth(candidate: Candidate) -> float:
        own, first = end_of(candidate, 0).measure, end_of(both.definition.space.candidates[0], 0).measure
        assert own.peak_bytes
        return (
            0.5 * first.token_s("wall", 2) / own.token_s("wall", 2) + 0.5 * first.peak_bytes / own.peak_bytes
        )

    best = max(map(worth, both.definition.space.candidates))
    assert worth(both.best) >= 0.97 * best


def test_when_the_runs_own_layout_does_not_fit_the_first_that_trains_is_the_reference(tmp_path):
    def end_of(candidate: Candidate, rung: int) -> Ended:
        del rung
        if candidate.number == 0:
            return Ended(outcome="memory", why="it did not fit", seconds=1.0, measure=None)
        return good(made_up(candidate))

    tune = replay(tmp_path, end_of)
    tune.run()
    assert tune.best is not None
    assert tune.best.number != 0


def test_an_interrupted_trial_is_made_again_and_changes_nothing(tmp_path):
    tune = replay(tmp_path, lambda candidate, _: good(made_up(candidate)))
    trials = tune.run()
    stopped = Ended(outcome=INTERRUPTED, why=None, seconds=1.0, measure=None)
    cut = [*trials[:3], Trial(number=3, candidate=trials[3].candidate, rung=0, steps=5, ended=stopped)]

    step = tune.step(cut)

    assert isinstance(step, Next)
    assert (step.candidate, step.rung) == (trials[3].candidate, trials[3].rung)


def test_a_second_worker_takes_another_candidate_and_waits_where_a_rung_must_end_first(tmp_path):
    tune = replay(tmp_path, lambda candidate, _: good(made_up(candidate)))
    trials = tune.run()
    first_rung = [trial for trial in trials if trial.rung == 0]
    running = [*first_rung[:-1], Trial(**{**vars(first_rung[-1]), "ended": None})]

    assert isinstance(tune.step(running), Wait)
    beside_the_reference = tune.step([Trial(**{**vars(trials[0]), "ended": None})])
    assert isinstance(beside_the_reference, Next)
    assert beside_the_reference.candidate != 0
    assert isinstance(tune.step(trials), Done)


def test_more_trials_go_on_with_a_finished_tune(tmp_path):
    few = replay(tmp_path, lambda candidate, _: good(made_up(candidate)), num_trials=4)
    trials = few.run()
    more = replay(tmp_path, lambda candidate, _: good(made_up(candidate)), num_trials=12)
    more.trials = list(trials)
    assert len(more.run()) > len(trials)
    assert more.trials[: len(trials)] == trials
