"""Keys that the run file leaves to the planner."""

import pytest

from megatune.config import LoadedRun, resolved_yaml, run_schema
from megatune.config.auto import AUTO_KEYS
from megatune.plan.layout_keys import value_of

BATCH = "train.global_batch_size=64"


def everything_open(load) -> LoadedRun:
    return load(MINIMAL, BATCH, *(f"{key}=auto" for key in AUTO_KEYS))


MINIMAL = """\
model: {model_name_or_path: gpt2}
data: {train: train.jsonl}
train: {output_dir: runs/x}
"""


def test_auto_leaves_the_default_and_is_told(load):
    loaded = everything_open(load)
    assert loaded.auto == AUTO_KEYS
    assert [value_of(loaded.run, key) for key in AUTO_KEYS] == [1, 3, "none", 1]
    assert "tp_size" not in loaded.run.parallel.model_fields_set
    assert load().auto == ()


def test_the_resolved_run_file_leaves_open_what_nobody_has_planned_yet(load):
    text = resolved_yaml(everything_open(load))
    assert "tp_size: auto  # command line" not in text, "an origin is that of the value it stands beside"
    assert "tp_size: auto  # auto" in text
    assert load(text).auto == AUTO_KEYS


def test_what_was_planned_says_so_in_the_resolved_run_file_and_loads_again(load):
    loaded = everything_open(load)
    parallel = loaded.run.parallel.model_copy(update={"tp_size": 2})
    planned = loaded.planned(loaded.run.model_copy(update={"parallel": parallel}), ("parallel.tp_size",))
    text = resolved_yaml(planned)
    assert "tp_size: 2  # planned" in text
    again = load(text)
    assert (again.auto, again.run.parallel.tp_size) == ((), 2)


@pytest.mark.parametrize("key", ["parallel.tp_size", "train.per_device_train_batch_size"])
def test_what_would_change_the_batch_needs_one_that_is_given(refusal, load, key):
    (problem,) = refusal(MINIMAL, f"{key}=auto")
    assert key in problem and "global_batch_size" in problem
    assert load(MINIMAL, f"{key}=auto", "train.tokens_per_step=65536").auto == (key,)


def test_other_words_and_other_keys_are_refused(refusal):
    (problem,) = refusal(MINIMAL, "parallel.tp_size=automatic")
    assert "a whole number" in problem and "auto" in problem
    (problem,) = refusal(MINIMAL, "train.seed=auto")
    assert "train.seed" in problem


def test_editors_are_told_that_auto_is_allowed():
    schema = run_schema()
    for key in AUTO_KEYS:
        section, _, name = key.partition(".")
        definition = schema["$defs"][f"{section.capitalize()}Section"]["properties"][name]
        assert {"const": "auto"} in definition["anyOf"]
        assert definition["description"]
