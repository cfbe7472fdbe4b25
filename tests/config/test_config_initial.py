import re
from typing import get_args

import pytest
import yaml

from megatune.config import Run, Task, initial_run_file, run_schema
from megatune.config.load import leaves
from megatune.config.sections import TASK_ROWS
from megatune.errors import ConfigError


@pytest.mark.parametrize("task", get_args(Task))
def test_the_initial_file_loads_with_only_the_paths_changed(load, task):
    text = initial_run_file(task)
    for placeholder, path in (("path/to/model", "m"), ("data/train.jsonl", "t"), ("data/valid.jsonl", "v")):
        assert placeholder in text
        text = text.replace(placeholder, path)
    run = load(text).run
    assert run.data.task == task
    assert run.data.train.paths == ["t"]


def test_the_initial_file_sets_nothing_but_defaults(load, minimal):
    initial = load(initial_run_file("text"), "data.validation=null", "model.model_name_or_path=gpt2")
    plain = load(minimal, "data.train=data/train.jsonl", "train.output_dir=runs/first")
    assert initial.run == plain.run
    assert initial.notices == []


def test_every_key_of_the_schema_is_in_the_initial_file_with_a_description(load, minimal):
    lines = initial_run_file("text").splitlines()
    keys = {key[:2] for key, _ in leaves(load(minimal, "slurm={}", "tokenizer={}").run)}
    for key in keys:
        indent = "  " * (len(key) - 1)
        at = next(n for n, line in enumerate(lines) if re.match(rf"{indent}#?{key[-1]}:", line))
        assert re.match(rf"{indent}# \S.*", lines[at - 1]), key


def test_every_example_behind_a_hash_is_a_value_that_the_schema_takes():
    lines = initial_run_file("text").splitlines()
    headers = {number: line for number, line in enumerate(lines) if line in ("#slurm:", "#tokenizer:")}
    off = [n for n, line in enumerate(lines) if re.match(r" *#\w", line) and n not in headers]
    assert len(off) > 20
    for number in off:
        section = max(n for n, line in enumerate(lines[: number + 1]) if re.match(r"#?\w+:", line))
        text = "\n".join(
            line.replace("#", "", 1) if n in (number, section) else line for n, line in enumerate(lines)
        )
        Run.model_validate(yaml.safe_load(text.replace("1e-05", "1.0e-05").replace("1e-08", "1.0e-08")))


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="no task 'poetry'; use one of text, dialogue"):
        initial_run_file("poetry")


def test_every_task_says_what_its_rows_hold():
    assert set(TASK_ROWS) == set(get_args(Task))


def resolve(schema, part):
    if "$ref" in part:
        return resolve(schema, schema["$defs"][part["$ref"].rpartition("/")[2]])
    return next(
        (resolve(schema, option) for option in part.get("anyOf", []) if option != {"type": "null"}), part
    )


def test_the_json_schema_knows_every_key_of_the_initial_file_and_no_other_key():
    schema = run_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    text = re.sub(r"(?m)^( *)#(?=\w)", r"\1", initial_run_file("text"))
    document = yaml.safe_load(text)
    assert set(document) == set(schema["properties"])
    for name, value in document.items():
        section = resolve(schema, schema["properties"][name])
        if isinstance(value, dict):
            assert set(value) == set(section["properties"])
            assert section["additionalProperties"] is False
            assert all("description" in key for key in section["properties"].values())


def test_the_json_schema_takes_all_three_forms_of_a_data_source():
    source = run_schema()["$defs"]["DataSource"]
    assert [form["type"] for form in source["anyOf"]] == ["string", "array", "object"]
    keys = {"path", "paths", "split", "columns", "max_samples", "mixture"}
    assert set(source["anyOf"][2]["properties"]) == keys
