"""The candidates of a tune, its options, its journal, and what it takes for the same loss."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recorded_tune import good, measured, write_run

from megatune.cli.tune import TuneCommand, tune_run
from megatune.config import load_run
from megatune.config.load import leaves
from megatune.errors import ConfigError, MegatuneError, ModelError
from megatune.tune.layouts.begin import TuneOptions, begin_tune, define_tune
from megatune.tune.layouts.best_file import write_best
from megatune.tune.layouts.candidates import Candidate, policy_with
from megatune.tune.layouts.definition import read_definition
from megatune.tune.layouts.forecast import Leftover
from megatune.tune.layouts.journal import TuneFolder, enter, read_trials, take
from megatune.tune.layouts.knobs import KNOBS, POLICY
from megatune.tune.layouts.measure import read_measure
from megatune.tune.layouts.objective import Figures, parse_objective
from megatune.tune.layouts.result import read_tune


def candidates(run_file: Path, *overrides: str, **options: object) -> tuple[Candidate, ...]:
    _, definition, _ = define_tune(run_file, overrides, TuneOptions(**options))  # type: ignore[arg-type]
    return definition.space.candidates


def test_every_knob_is_a_key_of_the_run_file_or_of_the_policy(tmp_path):
    known = {".".join(key) for key, _ in leaves(load_run(write_run(tmp_path)).run)}
    assert [knob.key for knob in KNOBS if not knob.key.startswith(POLICY) and knob.key not in known] == []


def test_the_first_candidate_is_the_run_itself_none_comes_twice_and_all_keep_the_batch(tmp_path):
    found = candidates(write_run(tmp_path, parallel={"tp_size": 2}))
    assert found[0].layout.tensor_parallel == 2
    assert found[0].layout.micro_batch == 4
    assert len({tuple(one.values.items()) for one in found}) == len(found)
    assert {one.layout.global_sequences for one in found} == {8}
    assert [one.number for one in found] == list(range(len(found)))


def test_a_value_to_try_that_no_layout_has_is_named(tmp_path):
    options = TuneOptions(tried=("parallel.tp_size=3", "parallel.tp_size=1"))
    _, definition, _ = define_tune(write_run(tmp_path), (), options)
    assert [text for text in definition.space.left_out if text.startswith("parallel.tp_size")] == [
        "parallel.tp_size=3: no layout with it fits the model and these machines (`megatune plan` says why)."
    ]


def test_knobs_that_have_no_effect_on_a_layout_are_not_varied_there(tmp_path):
    found = candidates(write_run(tmp_path))
    alone = [one for one in found if one.layout.data_parallel == 1]
    assert alone
    assert {one.values["parallel.leaf_modules"] for one in alone} == {"true"}
    assert {one.values["parallel.leaf_modules"] for one in found} == {"true", "false"}


def test_threads_that_read_ahead_are_tried_where_they_are_asked_for(tmp_path):
    run_file = write_run(tmp_path)
    assert {one.values["data.loader_workers"] for one in candidates(run_file)} == {"0"}
    tried = candidates(run_file, tried=("data.loader_workers=0,2",))
    assert {one.values["data.loader_workers"] for one in tried} == {"0", "2"}


def test_compiled_blocks_are_tried_on_a_cpu_where_they_are_asked_for(tmp_path):
    run_file = write_run(tmp_path)
    assert {one.values["model.compile"] for one in candidates(run_file)} == {"false"}
    tried = candidates(run_file, tried=("model.compile=false,true",))
    assert {one.values["model.compile"] for one in tried} == {"false", "true"}
    # Each is a value of its knob; together the run file refuses them.
    pairs = {(one.values["model.compile"], one.values["parallel.leaf_modules"]) for one in tried}
    assert ("true", "false") not in pairs and ("false", "false") in pairs


def test_try_and_fix_decide_what_is_varied(tmp_path):
    run_file = write_run(tmp_path)
    tried = candidates(run_file, tried=("train.per_device_train_batch_size=1,2", "parallel.tp_size=1"))
    assert {one.layout.micro_batch for one in tried[1:]} == {1, 2}
    assert {one.layout.tensor_parallel for one in tried} == {1}
    fixed = candidates(run_file, fixed=("model.gradient_checkpointing", "parallel.leaf_modules"))
    assert {one.layout.gradient_checkpointing for one in fixed} == {False}
    assert {one.values["parallel.leaf_modules"] for one in fixed} == {"true"}


def test_numbers_of_ranks_can_be_tried_at_the_same_batch(tmp_path):
    found = candidates(write_run(tmp_path), tried=("launch.nproc_per_node=1,2",))
    assert {one.devices for one in found} == {1, 2}
    assert {one.layout.global_sequences for one in found} == {8}


def test_the_shortlist_holds_the_best_of_each_kind(tmp_path):
    found = candidates(write_run(tmp_path), shortlist=4, fixed=("parallel.leaf_modules",))
    kinds = {
        (
            one.layout.tensor_parallel,
            one.layout.zero_stage,
            one.layout.offload,
            one.layout.gradient_checkpointing,
        )
        for one in found[1:]
    }
    assert len(kinds) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_trials": 1, "steps": 0, "minutes": 0}, ["--trials is 1", "--steps is 0", "--minutes is 0"]),
        ({"objective": "speed"}, ["'speed'", "tokens_per_second"]),
        ({"objective": "memory=-1"}, ["memory=-1", "weight above 0"]),
        ({"clock": "sun"}, ["--clock is 'sun'", "auto, wall, cpu"]),
        ({"tried": ("parallel.tp_sizes=1",)}, ["Did you mean parallel.tp_size?"]),
        ({"tried": ("parallel.tp_size=",)}, ["needs values"]),
        ({"tried": ("parallel.tp_size=two",)}, ["parallel.tp_size=two", "whole number"]),
        ({"tried": ("parallel.tp_size=1",), "fixed": ("parallel.tp_size",)}, ["--try and to --fix"]),
        ({"tried": ("reduce_bucket_size=big",)}, ["whole numbers"]),
        ({"on_slurm": True}, ["slurm section"]),
        ({"warmup_steps": -1, "shortlist": 0}, ["--warmup is -1", "--shortlist is 0"]),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(tmp_path, options, words):
    with pytest.raises(ConfigError) as caught:
        candidates(write_run(tmp_path), **options)
    for word in words:
        assert word in str(caught.value)


def test_a_run_that_no_trial_could_start_is_refused(tmp_path):
    run_file = write_run(tmp_path, parallel={"tp_size": 16}, launch={"nproc_per_node": 16})
    with pytest.raises(ConfigError, match=r"attention head\(s\).*Use parallel.tp_size from 1 to"):
        candidates(run_file)


def test_other_machines_are_refused_without_a_job(tmp_path):
    with pytest.raises(ConfigError, match="--slurm 1"):
        candidates(write_run(tmp_path, launch={"nodes": 2}))


def test_the_file_of_a_tune_is_a_run_again_inside_a_job_and_here(tmp_path):
    slurm = {"nodes": 2, "gpus_per_node": 0, "cpus_per_task": 1, "mem": "64G", "time": 10}
    run_file = write_run(tmp_path, slurm=slurm)
    for on_slurm, devices, nodes in ((True, 4, 2), (False, 2, 1)):
        given = (f"train.output_dir={tmp_path / str(on_slurm)}", "train.per_device_train_batch_size=2")
        folder, definition, loaded = define_tune(run_file, given, TuneOptions(on_slurm=on_slurm))
        begin_tune(folder, definition, loaded)
        again = load_run(folder.run_file).run
        assert again.launch.nodes == nodes
        assert (again.slurm is not None) == on_slurm
        assert definition.space.candidates[0].devices == devices
        assert definition.tuned(folder).question({}).num_devices == devices


def test_a_model_folder_that_is_not_there_is_refused_in_words(tmp_path):
    with pytest.raises(ModelError, match="is no folder here"):
        candidates(write_run(tmp_path, model={"model_name_or_path": "/not/there"}))


def test_a_tune_goes_on_only_with_what_it_was_begun_with(tmp_path):
    run_file = write_run(tmp_path)
    folder, definition, loaded = define_tune(run_file, (), TuneOptions(clock="wall"))
    begin_tune(folder, definition, loaded)
    assert read_definition(folder) == replace(definition, machine=read_definition(folder).machine)

    _, more, loaded = define_tune(run_file, (), TuneOptions(num_trials=30))
    kept = begin_tune(folder, more, loaded)
    assert (kept.rules.num_trials, kept.rules.clock) == (30, "wall"), "more trials go on, by the same clock"

    _, other, loaded = define_tune(run_file, (), TuneOptions(steps=9, objective="memory"))
    with pytest.raises(ConfigError, match="differs in: steps, objective"):
        begin_tune(folder, other, loaded)


def test_a_number_is_taken_by_one_worker_and_a_damaged_result_is_named(tmp_path):
    folder = TuneFolder(tmp_path / "tune")
    folder.create()
    assert take(folder, 0, candidate=3, rung=0, steps=5)
    assert not take(folder, 0, candidate=4, rung=0, steps=5)
    (trial,) = read_trials(folder)
    assert (trial.candidate, trial.ended) == (3, None)

    enter(folder, 0, good(1e-3))
    (trial,) = read_trials(folder)
    assert trial.ended == good(1e-3)
    (folder.trial(0).path / "result.json").write_text('{"outcome"')
    with pytest.raises(MegatuneError, match=r"result\.json is damaged.*Delete the folder"):
        read_trials(folder)


def test_the_winners_file_says_why_and_holds_a_policy_of_its_own(tmp_path):
    run_file = write_run(tmp_path)
    options = TuneOptions(
        clock="wall", num_trials=2, tried=("reduce_bucket_size=null,1000", "parallel.tp_size=1")
    )
    folder, definition, loaded = define_tune(run_file, (), options)
    begin_tune(folder, definition, loaded)
    bucket = f"{POLICY}zero_optimization.reduce_bucket_size"
    winner = next(
        one.number
        for one in definition.space.candidates
        if one.values[bucket] == "1000" and one.layout.micro_batch == 4
    )
    for number, (candidate, seconds) in enumerate(((0, 2e-3), (winner, 1e-3))):
        assert take(folder, number, candidate=candidate, rung=0, steps=5)
        enter(folder, number, good(seconds))

    result = read_tune(folder)
    write_best(result, result.best)

    text = folder.best_file.read_text()
    assert "2.00 x the run's own" in text
    best = load_run(folder.best_file).run
    assert best.train.output_dir == tmp_path / "run"
    assert best.train.global_batch_size == 8
    assert json.loads(best.deepspeed.read_text()) == {"zero_optimization": {"reduce_bucket_size": 1000}}
    assert "reduce_bucket_size=1000: tuned: 2.00 x the run's own; null at best 1.00 x" in text


def test_results_without_a_tune_are_refused(tmp_path):
    command = TuneCommand(options=TuneOptions(), results_only=True)
    with pytest.raises(ConfigError, match="there is no tune in"):
        tune_run(write_run(tmp_path), [], command)


def test_a_policy_keeps_what_no_knob_changes():
    policy = {
        "zero_optimization": {"reduce_bucket_size": 5, "overlap_comm": True},
        "gradient_clipping": "auto",
    }
    values = {f"{POLICY}zero_optimization.reduce_bucket_size": "7", f"{POLICY}zero_optimization.x": "null"}
    changed = policy_with(policy, values)
    assert changed == {**policy, "zero_optimization": {"reduce_bucket_size": 7, "overlap_comm": True}}
    assert policy["zero_optimization"]["reduce_bucket_size"] == 5


def test_processor_time_is_that_of_one_ranks_share():
    measure = measured(1e-3)
    assert measure.token_s("wall", 2) == pytest.approx(1e-3)
    assert measure.token_s("cpu", 2) == pytest.approx(1e-3)
    assert measure.token_s("cpu", 4) == pytest.approx(5e-4)


def test_metrics_without_a_timed_step_measure_nothing(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    assert read_measure(metrics, warmup_steps=1) is None
    step = {
        "event": "step",
        "loss": 1.0,
        "step_seconds": 1.0,
        "cpu_seconds": 1.0,
        "tokens": 8,
        "peak_memory_bytes": 5,
    }
    run = {"event": "run", "details": {"engine": "e", "attention": "sdpa"}}
    metrics.write_text("".join(json.dumps(entry) + "\n" for entry in (run, step)))
    assert read_measure(metrics, warmup_steps=1) is None
    assert read_measure(metrics, warmup_steps=0).peak_bytes == 5


def test_scores_are_relative_to_the_reference_and_unknown_memory_has_none():
    first = Figures(token_s=1e-3, peak_bytes=4e9, devices=2)
    other = Figures(token_s=5e-4, peak_bytes=8e9, devices=4)
    assert parse_objective("tokens_per_second").score(other, first) == pytest.approx(2.0)
    assert parse_objective("tokens_per_gpu_hour").score(other, first) == pytest.approx(1.0)
    assert parse_objective("memory").score(other, first) == pytest.approx(0.5)
    assert parse_objective("tokens_per_second=3,memory=1").score(other, first) == pytest.approx(1.625)
    assert parse_objective("memory").score(replace(other, peak_bytes=None), first) is None


def test_what_the_planner_does_not_know_is_learnt_and_untried_values_stay_wide():
    varied = {"parallel.tp_size": ["1", "2"], "train.per_device_train_batch_size": ["1", "2", "4", "8"]}
    points = [
        {"parallel.tp_size": tp, "train.per_device_train_batch_size": micro}
        for tp in ("1", "2")
        for micro in "124"
    ]
    slow = [1.5 if point["parallel.tp_size"] == "2" else 1.0 for point in points]
    learnt = Leftover(varied, points, [2.0] * 6, [2.0 * factor for factor in slow])

    one = learnt.expected({"parallel.tp_size": "1", "train.per_device_train_batch_size": "8"}, 2.0)
    two = learnt.expected({"parallel.tp_size": "2", "train.per_device_train_batch_size": "8"}, 2.0)
    seen = learnt.expected(points[0], 2.0)

    assert two.value / one.value == pytest.approx(1.5, rel=0.1)
    assert one.width > 2 * seen.width
    nothing = Leftover(varied, [], [], [])
    assert nothing.expected(points[0], 2.0).value == 2.0
    assert np.isclose(
        nothing.expected(points[0], 2.0).low(1.0), 2.0 * np.exp(-nothing.expected(points[0], 2.0).width)
    )
