"""Many runs from one command: which ones, with which values, in which folders."""

from pathlib import Path

import pytest
from job_cases import write_run

from megatune.errors import ConfigError
from megatune.launch.slurm.array import load_array, load_sweep, split_values


def test_a_sweep_makes_a_run_of_each_combination(tmp_path):
    runs = load_sweep(
        write_run(tmp_path / "run.yaml"), ["train.learning_rate=1e-5,2e-5", "train.seed=1,2,3"], []
    )

    values = [(run.loaded.run.train.learning_rate, run.loaded.run.train.seed) for run in runs]
    assert values == [(rate, seed) for rate in (1e-5, 2e-5) for seed in (1, 2, 3)]


def test_each_run_of_a_sweep_has_a_folder_named_after_its_values(tmp_path):
    runs = load_sweep(
        write_run(tmp_path / "run.yaml"),
        ["train.learning_rate=1e-5", "data.train=a b.jsonl,../c.jsonl"],
        ["train.output_dir=/runs/x"],
    )

    assert [str(run.folder) for run in runs] == [
        "/runs/x/learning_rate-1e-5_train-a-b.jsonl",
        "/runs/x/learning_rate-1e-5_train-c.jsonl",
    ]


def test_overrides_hold_for_all_runs_of_a_sweep(tmp_path):
    runs = load_sweep(write_run(tmp_path / "run.yaml"), ["train.seed=1,2"], ["train.max_steps=7"])

    assert [run.loaded.run.train.max_steps for run in runs] == [7, 7]


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("train.seed", "must be key.sub=a,b,c"),
        ("train.seed=", "must be key.sub=a,b,c"),
        ("train.seed=1,,2", "empty value"),
        ("train.seed=1,1", "or one twice"),
        ("train.learning_rate=1e-4,1.0e-4", "or one twice"),
        ("train.output_dir=a,b", "gets a folder below train.output_dir by itself"),
        ("train.sed=1,2", "no key 'sed'"),
        ("train.seed=1,x", "train.seed is x"),
        ("data.train=a/b,a-b", "would share the folder"),
    ],
)
def test_a_sweep_with_a_mistake_is_refused(tmp_path, sweep, words):
    with pytest.raises(ConfigError, match=words):
        load_sweep(write_run(tmp_path / "run.yaml"), [sweep], [])


def test_a_key_of_two_sweeps_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"train.seed is given 2 times.*train.seed=a,b,c"):
        load_sweep(write_run(tmp_path / "run.yaml"), ["train.seed=1,2", "train.seed=3,4"], [])


def test_more_runs_than_slurm_takes_are_refused(tmp_path):
    seeds = ",".join(map(str, range(1002)))

    with pytest.raises(ConfigError, match="1002 runs; Slurm takes arrays of at most 1001"):
        load_sweep(write_run(tmp_path / "run.yaml"), [f"train.seed={seeds}"], [])


def test_values_in_brackets_stay_together():
    assert split_values("[a,b],c,{d: 1, e: 2}") == ["[a,b]", "c", "{d: 1, e: 2}"]


def test_a_pattern_that_no_shell_expanded_is_expanded(tmp_path, monkeypatch):
    for name in ("b", "a"):
        write_run(tmp_path / f"{name}.yaml", train={"output_dir": f"/runs/{name}"})
    monkeypatch.chdir(tmp_path)

    assert [run.folder.name for run in load_array([Path("*.yaml")], [])] == ["a", "b"]
    assert [run.folder.name for run in load_array([tmp_path / "*.yaml"], [])] == ["a", "b"]


def test_a_file_that_is_named_twice_is_one_run(tmp_path):
    path = write_run(tmp_path / "a.yaml")

    assert len(load_array([path, path], [])) == 1


def test_the_problems_of_all_files_are_told_at_once(tmp_path):
    bad = write_run(tmp_path / "bad.yaml", train={"seed": "x"})

    with pytest.raises(ConfigError) as caught:
        load_array([bad, tmp_path / "none.yaml"], [])

    assert len(caught.value.problems) == 2
