from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatune.config.document import MAX_BYTES, format_value, read_document, read_value
from megatune.config.load import load_run
from megatune.errors import ConfigError


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        read_document(text, source="run.yaml")
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-2.5e-3", -2.5e-3),
        (".5", 0.5),
        ("3.", 3.0),
        ("1_000", 1000),
        ("0", 0),
        ("007", "007"),
        ("12:00:00", "12:00:00"),
        ("2026-01-01", "2026-01-01"),
        ("0x10", "0x10"),
        ("1e5x", "1e5x"),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("", None),
        ("[1, a, 2.0]", [1, "a", 2.0]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_a_scalar_is_read_as_a_person_means_it(text, value):
    read = read_value(text, source="x")
    assert (type(read), read) == (type(value), value)


def test_a_key_given_twice_is_refused_with_both_lines_at_every_level():
    message = refused("train:\n  seed: 1\n  seed: 2\nmodel: a\ndata: b\nmodel: c\n")
    assert "train.seed is given twice, in line 2 and line 3" in message
    assert "model is given twice, in line 4 and line 6" in message


def test_an_alias_bomb_is_refused_before_it_is_opened():
    bomb = "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(50))
    assert "run.yaml:1:4: anchors (&) and aliases (*) are not allowed" in refused(bomb)
    assert "anchors" in refused("a: *nothing\n")


def test_a_python_object_is_refused_and_never_made(tmp_path):
    marker = tmp_path / "made"
    assert "tags" in refused(f'a: !!python/object/apply:os.system ["touch {marker}"]\n')
    assert not marker.exists()


def test_deep_nesting_is_refused_without_exhausting_the_stack():
    assert "nested deeper" in refused("a: " + "[" * 100_000)


def test_a_tab_is_named_with_file_line_and_column():
    message = refused("train:\n\tseed: 1\n")
    assert message.startswith("run.yaml:2:1: ")
    assert "spaces, not with tabs" in message


@pytest.mark.parametrize(
    "text", ["a: [1\n", "a: b: c\n", "a: 1\n---\nb: 2\n", 'a: "x\n', "{", "a: \x07\n", "? \n"]
)
def test_broken_yaml_is_refused_in_one_line_of_plain_words(text):
    message = refused(text)
    assert message.startswith("run.yaml")
    assert "\n" not in message


@pytest.mark.parametrize("text", ["1: a\n", "yes: a\n", "[a]: b\n", "null: a\n", "1e3: b\n"])
def test_a_key_that_is_no_name_is_refused_with_its_line(text):
    assert "line 1: a key must be a name" in refused(text)


def test_an_empty_file_and_a_list_are_refused():
    assert "empty" in refused("# only a comment\n")
    assert "sections" in refused("- a\n- b\n")


def test_a_missing_folder_unreadable_large_or_binary_file_is_refused(tmp_path):
    large, binary = tmp_path / "large.yaml", tmp_path / "binary.yaml"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    binary.write_bytes(b"model: \xff\xfe")
    expected = {
        tmp_path / "none.yaml": "no such file.*megatune init",
        tmp_path: "cannot be read",
        large: "larger than",
        binary: "not UTF-8",
        Path("nul\0.yaml"): "cannot be read",
    }
    for path, message in expected.items():
        with pytest.raises(ConfigError, match=message):
            load_run(path)


_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(
        ["yes", "1e-5", "~", "null", "12:00", "- a", "#x", "a: b", "\ufffe", "\U0001f600", "\x85"]
    ),
)


@given(
    st.recursive(_scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
)
def test_a_formatted_value_is_one_line_that_reads_back_as_itself(value):
    text = format_value(value)
    assert "\n" not in text
    if isinstance(value, float) and value != value:
        assert text == ".nan"
    elif ".nan" not in text:
        assert read_value(text, source="x") == value
