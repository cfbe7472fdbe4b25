from pathlib import Path

import pytest
from pydantic import ValidationError

from megatune.config import load_run, resolved_values, resolved_yaml
from megatune.errors import ConfigError


def test_a_minimal_file_takes_the_documented_defaults(load):
    run = load().run
    assert (run.model.initialize, run.model.gradient_checkpointing) == ("pretrained", "auto")
    assert (run.parallel.zero_stage, run.parallel.tp_size, run.precision) == (3, 1, "bf16")
    assert (run.train.learning_rate, run.train.optimizer, run.train.seed) == (1e-5, "adamw", 42)
    assert (run.slurm, run.report_to, run.deepspeed) == (None, [], None)


def test_every_level_of_a_run_is_frozen(load):
    run = load().run
    for section, key in ((run, "precision"), (run.train, "seed"), (run.data.train, "split")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, None)


@pytest.mark.parametrize(
    ("given", "paths", "split", "columns"),
    [
        ("a.jsonl", ["a.jsonl"], None, {}),
        ("[a.jsonl, b.csv]", ["a.jsonl", "b.csv"], None, {}),
        ("{path: a}", ["a"], None, {}),
        ("{paths: a, split: 'train[:5%]'}", ["a"], "train[:5%]", {}),
        ("{paths: [a, b], columns: {text: body}, split: null}", ["a", "b"], None, {"text": "body"}),
    ],
)
def test_a_data_source_has_one_form_however_it_is_written(load, minimal, given, paths, split, columns):
    source = load(minimal.replace("train.jsonl", given)).run.data.train
    assert (source.paths, source.split, source.columns) == (paths, split, columns)


def test_each_value_says_whether_it_comes_from_a_line_the_command_line_or_a_default(load, minimal):
    loaded = load(
        minimal + "precision: fp16\nslurm:\n  time: 12:00:00\n", "train.seed=7", "data.train.split=dev"
    )
    origins = loaded.origins
    assert origins["precision"] == "run.yaml:4"
    assert origins["slurm.time"] == "run.yaml:6"
    assert origins["data.train.paths"] == "run.yaml:2"
    assert origins["data.train.split"] == origins["train.seed"] == "command line"
    assert origins["data.train.columns"] == origins["train.learning_rate"] == "default"


def test_an_override_wins_and_its_value_is_yaml(load):
    run = load(
        "model: {model_name_or_path: a}\ndata: {train: x}\ntrain: {output_dir: o, seed: 1}\n",
        "train.seed=2",
        "train.learning_rate=3e-4",
        "data.validation=[a.jsonl, 'b c.jsonl']",
        "data.packing=no",
        "model.model_name_or_path=a=b",
        "slurm={partition: gpu, nodes: 2}",
        "slurm.nodes=3",
        "train.seed=3",
    ).run
    assert (run.train.seed, run.train.learning_rate, run.data.packing) == (3, 3e-4, False)
    assert run.data.validation is not None
    assert run.data.validation.paths == ["a.jsonl", "b c.jsonl"]
    assert run.model.model_name_or_path == "a=b"
    assert run.slurm is not None
    assert (run.slurm.partition, run.slurm.nodes) == ("gpu", 3)


def test_a_null_override_takes_a_value_or_a_section_back_to_its_default(load, minimal):
    text = minimal.replace("output_dir: runs/x", "output_dir: runs/x, seed: 5") + "slurm: {partition: gpu}\n"
    loaded = load(text, "train.seed=null", "slurm=")
    assert (loaded.run.train.seed, loaded.run.slurm) == (42, None)
    assert loaded.origins["train.seed"] == "default"


def test_an_override_adds_to_a_bare_data_path_or_replaces_the_whole_source(load, minimal):
    text = minimal.replace("train.jsonl", "{path: a, columns: {text: body}}")
    added = load(text, "data.train.columns.prompt=q", "data.train.path=b")
    assert added.run.data.train.paths == ["b"]
    assert added.run.data.train.columns == {"text": "body", "prompt": "q"}
    assert added.origins["data.train.columns"] == "command line"
    replaced = load(text, "data.train=c").run.data.train
    assert (replaced.paths, replaced.columns) == (["c"], {})


@pytest.mark.parametrize("override", ["train.seed", "=3", "train seed=3", "--train.seed=3", "train..seed=3"])
def test_an_override_without_key_and_value_is_named(refusal, minimal, override):
    assert refusal(minimal, override)[0].startswith(f"{override!r} on the command line must be key=value")


def test_an_override_with_broken_yaml_is_named_with_the_column(refusal, minimal):
    assert refusal(minimal, "train.seed=[1")[0].startswith("'train.seed=[1' on the command line:1:3: ")


def test_an_override_below_a_value_that_is_no_section_is_refused(refusal, minimal):
    (problem,) = refusal(minimal + "precision: bf16\n", "precision.kind=fp16")
    assert problem == "precision.kind: fp16 (command line) cannot be set: precision is bf16, not a section."


def test_an_empty_section_takes_away_nothing_that_an_alias_gave(load):
    text = "base_model: gpt2\nmodel:\ndata: {train: a}\ntrain: {output_dir: o}\nevaluate:\nslurm: {}\n"
    run = load(text, "train={}").run
    assert (run.model.model_name_or_path, run.train.output_dir) == ("gpt2", Path("o"))
    assert run.slurm is not None


def test_null_does_not_hide_an_unknown_key(refusal, minimal):
    (problem,) = refusal(minimal + "evaluate: {eval_stepps: null}\n")
    assert "no key 'eval_stepps' (line 4). Did you mean evaluate.eval_steps?" in problem


def test_report_to_takes_a_bare_name_and_none(load, minimal):
    assert load(minimal + "report_to: tensorboard\n").run.report_to == ["tensorboard"]
    assert load(minimal + "report_to: none\n").run.report_to == []
    assert load(minimal + "report_to: [none]\n").run.report_to == []


@pytest.mark.parametrize("time", ["90", "12:00:00", '"30:00"', "1-12", "2-00:30:00", "1-12:30"])
def test_slurm_time_takes_every_form_that_sbatch_takes(load, minimal, time):
    slurm = load(minimal + f"slurm: {{time: {time}}}\n").run.slurm
    assert slurm is not None
    assert slurm.time == time.strip('"')


@pytest.mark.parametrize("time", ["12h", "1:2:3:4", "-5", "12:99:00", '""', "1-", "90.5"])
def test_a_slurm_time_that_sbatch_would_refuse_is_refused_first(refusal, minimal, time):
    (problem,) = refusal(minimal + f"slurm: {{time: {time}}}\n")
    assert problem.startswith("slurm.time is ")


@pytest.mark.parametrize(
    "key", ["partition", "account", "qos", "constraint", "exclude", "job_name", "mem", "time"]
)
@pytest.mark.parametrize("text", ['"a\\n#SBATCH --uid=0"', '"a\\0"', '"a\\rb"', '"\\u2028"', '"\\e[2J"'])
def test_no_slurm_string_can_open_a_second_line_in_the_script(refusal, minimal, key, text):
    (problem,) = refusal(minimal + f"slurm: {{{key}: {text}}}\n")
    assert problem.startswith(f"slurm.{key} is ")


def test_the_resolved_file_loads_to_the_same_run_and_names_every_origin(load, minimal):
    text = minimal.replace(
        "train.jsonl", "{path: 'a: b #.jsonl', columns: {text: 'yes', 'é\"': \"\\U0001f600\"}}"
    )
    loaded = load(
        text + "slurm: {time: 12:00:00, account: '007'}\nreport_to: tensorboard\n",
        "train.learning_rate=3e-4",
        "model.gradient_checkpointing=true",
        "data.validation=v",
    )
    resolved = resolved_yaml(loaded)
    assert load(resolved).run == loaded.run
    assert "  learning_rate: 0.0003  # command line\n" in resolved
    assert '    paths: ["a: b #.jsonl"]  # run.yaml:2\n' in resolved
    assert "  seed: 42  # default\n" in resolved
    values = [line for line in resolved.splitlines()[1:] if not line.endswith(":")]
    assert all("  # " in line for line in values)
    assert len(values) == len(loaded.origins)


def test_runs_that_differ_behind_a_sign_of_a_comment_are_not_equal(load, minimal):
    one, other = (load(minimal, f"data.train='a  # {name}.jsonl'") for name in "xy")
    assert resolved_values(one) != resolved_values(other)
    assert "# " not in resolved_values(load(minimal))


MIXTURES = [
    "[{path: a.jsonl}, {path: b.jsonl}]",
    "[{path: a.jsonl, weight: 2}, {path: b.jsonl, weight: 1e-5}]",
    "[{paths: [a, 'b c #.jsonl'], split: 'train[:5%]', columns: {text: 'yes', 'é: \"': x}, max_samples: 7}, d.csv]",
    "[{path: a, split: null, columns: {}, weight: null}, 'b: c']",
    "{mixture: [{path: a, weight: 1}], split: null}",
]


@pytest.mark.parametrize(
    ("key", "mixture"),
    [*(("train", one) for one in MIXTURES), ("validation", MIXTURES[0]), ("test", MIXTURES[2])],
)
def test_the_resolved_file_of_a_mixture_loads_to_the_same_run(load, minimal, key, mixture):
    loaded = load(minimal, f"data.{key}={mixture}")

    resolved = resolved_yaml(loaded)

    assert load(resolved).run == loaded.run
    assert resolved_values(load(resolved)) == resolved_values(loaded)


def test_a_part_of_a_mixture_is_written_without_the_keys_at_their_defaults(load, minimal):
    spelt_out = load(
        minimal, "data.train=[{paths: [a], split: null, columns: {}, max_samples: null}, {path: b}]"
    )

    assert "    mixture: [{paths: [a]}, {paths: [b]}]  # command line\n" in resolved_yaml(spelt_out)


def test_all_text_problems_come_before_any_key_is_judged(refusal):
    assert len(refusal("train:\n  seed: 1\n  seed: 2\n  nonsense: 3\n")) == 1


def test_the_error_names_the_file(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("train: 5\n")
    with pytest.raises(ConfigError, match=r"my\.yaml has 3 problems"):
        load_run(path)


def test_the_resolved_file_of_a_classifier_loads_although_rows_are_packed_by_default(load, minimal):
    loaded = load(minimal, "model.head=classifier", "data.task=classification")

    resolved = resolved_yaml(loaded)

    assert load(resolved).run == loaded.run
    assert "  packing: false  # default\n" in resolved
