"""Whatever is in the file, it is accepted as a whole run or refused with ConfigError: never a traceback."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatune.config import initial_run_file, load_run, resolve_batch, resolved_yaml
from megatune.config.aliases import BY_PLACE
from megatune.config.run import run_schema
from megatune.errors import ConfigError

BASE = yaml.safe_load(initial_run_file("text").replace("1e-0", "1.0e-0"))
SCHEMA = run_schema()
SECTION_KEYS = [key for section in SCHEMA["$defs"].values() for key in section.get("properties", {})]
NAMES = sorted(
    {*SCHEMA["properties"], *SECTION_KEYS, *(part for place in BY_PLACE for part in place.split("."))}
)

names = st.sampled_from(NAMES) | st.text(max_size=8)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        [0.03, 1e-5, 1024, 4096, 2**31, 10**400, "auto", "none", "all", "nvme:/x", "no", "steps", "epoch"]
    ),
    st.sampled_from(
        ["1e-5", "12:00:00", "$(touch x)", "`id`", "a\n#SBATCH -p x", "../..", "\0", "~", "x" * 5000]
    ),
    st.sampled_from(["bf16", "fp16", "sgd", "adamw_torch", "tensorboard", "eval_loss", "flash_attention_2"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
edits = st.lists(st.tuples(names, names, values, st.booleans()), min_size=1, max_size=5)


def plausible(schema: dict) -> st.SearchStrategy:
    """Values that the schema of one key allows, and a few just outside."""
    if "anyOf" in schema:
        return st.one_of([plausible(option) for option in schema["anyOf"]])
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    if schema.get("type") in ("integer", "number"):
        small = st.sampled_from([1, 2, 3, 8]) | st.integers(0, 5000)
        return small if schema["type"] == "integer" else small | st.floats(0, 1)
    examples = [*schema.get("examples", []), schema.get("default")]
    return {"boolean": st.booleans(), "null": st.none()}.get(
        schema.get("type", ""), st.sampled_from(examples)
    )


PLAUSIBLE = [
    st.tuples(
        st.just(section.removesuffix("Section").lower()), st.just(key), plausible(schema), st.just(False)
    )
    for section, definition in SCHEMA["$defs"].items()
    if section.endswith("Section")
    for key, schema in definition["properties"].items()
    if key not in ("train", "validation", "output_dir")
]


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "run.yaml"


def edited(changes) -> dict:
    """The initial run file with keys added, replaced or taken away, in sections or beside them."""
    document = copy.deepcopy(BASE)
    for section, key, value, at_top in changes:
        target = document if at_top else document.get(section)
        if not isinstance(target, dict):
            document[section] = value
        elif value is None and key in target:
            del target[key]
        else:
            target[key] = value
    return document


def accepted_or_refused(path: Path, overrides=()) -> None:
    try:
        loaded = load_run(path, overrides)
    except ConfigError as error:
        assert error.problems
        assert all(isinstance(problem, str) and problem.strip() for problem in error.problems)
        assert "pydantic" not in str(error)
        return
    for data_parallel in (1, 3, 4):
        try:
            shape = resolve_batch(loaded.run, data_parallel)
        except ConfigError:
            continue
        assert shape.micro * shape.accumulation * data_parallel == shape.global_sequences
    path.write_text(resolved_yaml(loaded), encoding="utf-8")
    again = load_run(path)
    assert again.run == loaded.run
    assert again.notices == []


quick = settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(changes=edits)
def test_a_run_file_with_any_keys_and_values_is_accepted_or_refused(run_file, changes):
    text = yaml.dump(edited(changes), allow_unicode=True)
    run_file.write_text(text, encoding="utf-8", errors="surrogatepass")
    accepted_or_refused(run_file)


@quick
@given(changes=st.lists(st.one_of(PLAUSIBLE), max_size=6))
def test_a_run_file_with_plausible_values_is_accepted_or_refused(run_file, changes):
    document = edited([("slurm", "", {}, False), *changes])
    run_file.write_text(yaml.dump(document), encoding="utf-8")
    accepted_or_refused(run_file)


@quick
@given(
    overrides=st.lists(
        st.builds("{}.{}={}".format, names, names, st.text(max_size=20))
        | st.builds("{}={}".format, st.sampled_from(sorted(BY_PLACE)), values.map(str))
        | st.text(max_size=20),
        min_size=1,
        max_size=4,
    )
)
def test_any_command_line_is_accepted_or_refused(run_file, overrides):
    run_file.write_text(yaml.dump(BASE), encoding="utf-8")
    accepted_or_refused(run_file, overrides)


@quick
@given(
    cuts=st.lists(
        st.tuples(
            st.integers(0, 4000),
            st.integers(0, 30),
            st.text(max_size=6) | st.sampled_from([*"{}[]:&*!|>\t%@`'\""]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_text_is_accepted_or_refused(run_file, cuts):
    text = initial_run_file("text")
    for start, length, inserted in cuts:
        text = text[:start] + inserted + text[start + length :]
    run_file.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    accepted_or_refused(run_file)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_accepted_or_refused(run_file, content):
    run_file.write_bytes(content)
    accepted_or_refused(run_file)
