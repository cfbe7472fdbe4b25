"""The space file: what it may name, and that every point makes a valid run."""

from pathlib import Path

import pytest
import yaml

from megatune.config import load_run
from megatune.errors import ConfigError
from megatune.tune.search.begin import SearchOptions, begin_search
from megatune.tune.search.space import Choices, Range, Space, load_space


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run that can be loaded; nothing it names exists."""
    path = tmp_path / "run.yaml"
    sections = {
        "model": {"model_name_or_path": "model"},
        "data": {"train": "train.jsonl", "validation": "valid.jsonl", "max_seq_length": 64},
        "train": {"output_dir": str(tmp_path / "run"), "max_steps": 4},
        "launch": {"nproc_per_node": 2},
    }
    path.write_text(yaml.safe_dump(sections))
    return path


def space_of(run_file: Path, text: str) -> Space:
    path = run_file.with_name("space.yaml")
    path.write_text(text)
    return load_space(path, load_run(run_file))


def refused(run_file: Path, text: str, *overrides: str, **options: object) -> list[str]:
    """The problems that end `megatune search` before its first trial."""
    path = run_file.with_name("space.yaml")
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        begin_search(run_file, overrides, path, SearchOptions(**options))
    assert not (run_file.parent / "run").exists()
    return caught.value.problems


def test_lists_ranges_and_sections_are_axes_in_the_order_of_the_file(run_file):
    space = space_of(
        run_file,
        "train.learning_rate: {low: 1e-5, high: 1e-3, log: true}\n"
        "train: {lr_scheduler_type: [linear, cosine], per_device_train_batch_size: {low: 1, high: 8}}\n",
    )
    assert space.axes == (
        Range(key="train.learning_rate", low=1e-5, high=1e-3, log=True),
        Choices(key="train.lr_scheduler_type", values=("linear", "cosine")),
        Range(key="train.per_device_train_batch_size", low=1, high=8, whole=True),
    )
    assert Space.from_object(space.as_object()) == space


def test_a_batch_that_no_group_of_ranks_can_take_is_found_on_a_machine_of_fewer_cores(run_file, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1})
    auto = ("launch.nproc_per_node=auto", "parallel.tp_size=4")
    sizes = "train.per_device_train_batch_size: [2, 4]"
    problems = refused(run_file, sizes, *auto, "train.global_batch_size=3")
    assert any("global_batch_size" in problem for problem in problems), problems


def test_whole_ends_of_a_key_that_takes_fractions_are_no_whole_range(run_file):
    (axis,) = space_of(run_file, "train.weight_decay: {low: 0, high: 2}").axes
    assert not axis.whole


def test_a_grid_holds_every_combination_of_lists_and_steps(run_file):
    space = space_of(
        run_file,
        "train.weight_decay: {low: 0.0, high: 0.25, step: 0.1}\ntrain.warmup_steps: [0, 0.5]\n",
    )
    assert [tuple(point.values()) for point in space.grid()] == [
        ("0.0", "0"), ("0.0", "0.5"), ("0.1", "0"), ("0.1", "0.5"), ("0.2", "0"), ("0.2", "0.5"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.learning_rte: [1, 2]", "no key 'train.learning_rte'. Did you mean train.learning_rate?"),
        ("learning_rate: [1e-3, 1e-4]", "Did you mean train.learning_rate?"),
        ("train.warmup_ratio: [0.1, 0.2]", "is called train.warmup_steps here"),
        ("train.output_dir: [a, b]", "a folder of its own"),
        ("checkpoint.save_steps: [1, 2]", "saves and resumes its trials itself"),
        ("parallel.tp_size: [1, 2]", "`megatune tune`"),
        ("data.max_seq_length: [32, 64]", "could not be compared"),
        ("train.learning_rate: 1e-3", "must be a list of values"),
        ("train.learning_rate: [1e-3]", "two values or more"),
        ("train.learning_rate: [1e-3, 1e-3]", "none twice"),
        ("train.learning_rate: {low: 1e-3, high: 1e-4}", "low must be below high"),
        ("train.learning_rate: {low: 0, high: 1e-4, log: true}", "must begin above 0"),
        ("train.learning_rate: {low: 1e-5, high: .inf}", "must be a finite number"),
        ("train.learning_rate: {low: 1e-5, high: 1e-4, lgo: true}", "a range has no 'lgo'"),
        ("train.learning_rate: {low: 1e-5, high: 1e-4, log: yes please}", "log is"),
        ("train.learning_rate: {low: 0.0, high: 1.0, step: 2.0}", "must be above 0 and fit"),
        ("train.learning_rate: {low: 0.1, high: 1.0, step: 0.1, log: true}", "exclude each other"),
        ("train.learning_rate: {low: low, high: true}", "low is low"),
        ("train.warmup_steps: {low: 0, high: 100}", "whole number of steps"),
        ("train.learning_rate: [-1.0, 1.0]", "train.learning_rate is -1.0"),
        ("train.lr_scheduler_type: [linear, cosin]", "Did you mean cosine?"),
        ("train.global_batch_size: [2, 3]", "does not divide into whole micro-batches"),
        ("", "the space is empty"),
    ],
)  # fmt: skip
def test_what_makes_no_valid_run_is_refused_before_the_first_trial(run_file, text, words):
    assert words in "\n".join(refused(run_file, text))


def test_all_problems_of_a_space_are_told_at_once(run_file):
    problems = refused(run_file, "train.seeds: [1, 2]\nslurm.time: [1, 2]\ntrain.learning_rate: 3\n")
    assert len(problems) == 3


def test_values_that_fit_alone_but_not_together_are_refused_with_their_point(run_file):
    text = "train.optimizer: [sgd, adamw]\ntrain.momentum: [0.0, 0.9]\n"
    (problem,) = refused(run_file, text)
    assert "train.optimizer = sgd only" in problem
    assert "(with train.optimizer=adamw, train.momentum=0.9)" in problem


@pytest.mark.parametrize(
    ("options", "overrides", "words"),
    [
        ({"sampler": "bayes"}, [], "tpe, random, grid"),
        ({"pruner": "mean"}, [], "none, median, hyperband"),
        ({"pruner": "median"}, [], "give evaluate.eval_steps"),
        ({"num_trials": 0}, [], "--trials is 0"),
        ({"sampler": "grid", "num_trials": 3}, [], "leave it out"),
        ({"sampler": "grid"}, [], "a range without a step"),
        ({"seed": -1}, [], "--seed is -1"),
        ({}, ["data.validation=null"], "give data.validation"),
        ({}, ["launch.nodes=2"], "launch.nodes=1"),
    ],
)
def test_options_that_cannot_be_are_refused_with_what_can(run_file, options, overrides, words):
    text = "train.learning_rate: {low: 1e-5, high: 1e-3}"
    assert words in "\n".join(refused(run_file, text, *overrides, **options))


def test_validation_rows_may_be_taken_out_of_the_training_rows(run_file):
    path = run_file.with_name("space.yaml")
    path.write_text("train.learning_rate: {low: 1e-5, high: 1e-3}")
    begin_search(run_file, ["data.validation=null", "data.val_size=0.1"], path, SearchOptions())


@pytest.mark.parametrize("content", [b"\xff\xfe", b"- 1\n", b"a: [1\n", b"a: 1\na: 2\n"])
def test_a_space_that_is_no_mapping_is_refused_with_its_name(run_file, content):
    path = run_file.with_name("space.yaml")
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"space\.yaml"):
        load_space(path, load_run(run_file))


def test_a_missing_space_is_named(run_file):
    with pytest.raises(ConfigError, match=r"none\.yaml.*cannot be read: No such file"):
        load_space(run_file.with_name("none.yaml"), load_run(run_file))
