"""Rows come out as the files hold them; whatever is wrong is named with its place."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from data_sources import Source
from data_sources import rows_of as read_rows

from megatune.errors import DataError


@pytest.fixture
def rows_of(tmp_path, monkeypatch):
    """Write a file and read its rows: `rows_of("a.jsonl", "...") -> [Row]`."""
    monkeypatch.chdir(tmp_path)

    def read(name, content, **options):
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return read_rows(Source([name], **options), tmp_path / "scratch")

    return read


def texts(rows):
    return [row.values.get("text") for row in rows]


def test_json_lines_keep_their_line_numbers_over_blank_lines(rows_of):
    rows = rows_of("a.jsonl", '\ufeff{"text": "one"}\n\n{"text": "two"}\n')
    assert texts(rows) == ["one", "two"]
    assert [row.where for row in rows] == ["a.jsonl:1 (row 1)", "a.jsonl:3 (row 2)"]


def test_only_newlines_end_a_json_line(rows_of):
    assert texts(rows_of("a.jsonl", '{"text": "a\u2028b"}\n{"text": "c"}')) == ["a\u2028b", "c"]


def test_a_json_file_may_be_one_array(rows_of):
    assert texts(rows_of("a.json", '\n [{"text": "one"},\n {"text": "two"}]\n')) == ["one", "two"]


def test_what_looks_like_a_date_or_a_missing_value_stays_text(rows_of):
    assert rows_of("a.jsonl", '{"text": "2020-01-01"}\n')[0].values == {"text": "2020-01-01"}
    table = rows_of("a.csv", "prompt,completion\n007,NA\n2020-01-01,None\n")
    assert [row.values for row in table] == [
        {"prompt": "007", "completion": "NA"},
        {"prompt": "2020-01-01", "completion": "None"},
    ]


def test_csv_cells_may_hold_separators_quotes_and_newlines(rows_of):
    rows = rows_of("a.csv", 'text,id\n"one, ""two""\nthree",1\n')
    assert rows[0].values == {"text": 'one, "two"\nthree', "id": "1"}


def test_a_csv_cell_may_be_longer_than_pythons_limit(rows_of):
    assert texts(rows_of("a.csv", f"text\n{'x' * 200_000}\n")) == ["x" * 200_000]


def test_tsv_is_separated_by_tabs(rows_of):
    assert rows_of("a.tsv", "text\tid\none, two\t1\n")[0].values == {"text": "one, two", "id": "1"}


def test_a_txt_file_holds_one_document_per_block_of_lines(rows_of):
    rows = rows_of("a.txt", "\n\none\ntwo\n \n\t\n\nthree\r\nfour")
    assert texts(rows) == ["one\ntwo", "three\nfour"]
    assert [row.where for row in rows] == ["a.txt:3 (row 1)", "a.txt:8 (row 2)"]


def test_parquet_rows_are_read_without_a_file_in_the_home(tmp_path):
    import pandas as pd

    pd.DataFrame({"text": ["one", "2020-01-01"]}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "home").mkdir()
    script = (
        "from pathlib import Path; from data_sources import Source, rows_of\n"
        "for row in rows_of(Source(['a.parquet']), Path('scratch')):\n"
        "    print(row.where, row.values)"
    )
    run = [sys.executable, "-c", script]
    home = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(run, cwd=tmp_path, env=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "a.parquet (row 2) {'text': '2020-01-01'}"
    assert [file for file in (tmp_path / "home").rglob("*") if file.is_file()] == []


def test_several_files_are_read_in_the_order_given(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    source = Source([str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")])
    assert texts(read_rows(source, tmp_path)) == ["b", "a"]


def test_a_folder_gives_the_split_that_was_asked_for(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "set" / "test.jsonl").write_text('{"text": "two"}\n')
    source = Source([str(tmp_path / "set")], split="test")
    assert texts(read_rows(source, tmp_path / "cache")) == ["two"]
    with pytest.raises(DataError, match="has no split 'nope'; its file names tell test, train"):
        read_rows(Source([str(tmp_path / "set")], split="nope"), tmp_path)


def test_a_folder_written_by_save_to_disk_is_read(tmp_path):
    import datasets

    one = datasets.Dataset.from_dict({"text": ["one"]})
    datasets.DatasetDict({"train": one}).save_to_disk(tmp_path / "set")
    source = Source([str(tmp_path / "set")])
    assert texts(read_rows(source, tmp_path / "cache")) == ["one"]
    with pytest.raises(DataError, match="no split 'validation'; it has train"):
        read_rows(source, tmp_path / "cache", "validation")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": "b"\n', r"a\.jsonl:2:1\d: not JSON .*text.*whole JSON object"),
        (
            "a.json",
            '[{"text": "a"},\n{"text" "b"}]',
            r"a\.json:2:9: not JSON .* around '\{\"text\" \"b\"\}\]'",
        ),
        (
            "a.jsonl",
            '["a"]\n["b"]',
            r"a\.jsonl:2:1: not JSON \(a file that begins with \[ is one array of all",
        ),
        ("a.json", '["a"]', r"a\.json \(row 1\): a str where an object must be"),
        ("a.jsonl", '{"text": "a"}\n"b"', r"a\.jsonl:2: a str where an object with columns must be"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', r"byte 24 \(0xe9, line 2\) is not UTF-8.*iconv"),
        ("a.csv", b"text\none\n\xe9\n", r"byte 9 \(0xe9, line 3\) is not UTF-8"),
        ("a.txt", b"\xff", r"byte 0 \(0xff, line 1\) is not UTF-8"),
        ("a.csv", "text,id\none,1,2\n", r"a\.csv:2 \(row 1\): 3 cells, the header has 2 \(text, id\)"),
        ("a.csv", "text,text\none,1\n", r"a\.csv:1: the header names 'text' more than once"),
        ("a.csv", 'text\n"one', r"a\.csv:2: not a readable table: unexpected end of data"),
        ("a.parquet", "not parquet", r"cannot read a\.parquet as parquet: Parquet magic bytes not found"),
        ("a.xlsx", "", r"a\.xlsx ends in '\.xlsx'; readable are \.jsonl, "),
    ],
)
def test_a_broken_file_is_named_with_the_place_and_the_fix(rows_of, name, content, problem):
    with pytest.raises(DataError, match=problem):
        rows_of(name, content)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_an_empty_file_has_no_rows(rows_of, name):
    assert rows_of(name, "") == []


def test_a_split_of_a_single_file_is_refused(rows_of):
    with pytest.raises(DataError, match="a split is for folders and hub ids"):
        rows_of("a.jsonl", "{}", split="test")


def test_all_missing_files_are_named_at_once_with_near_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").touch()
    source = Source(["data/trian.jsonl", "data/train", "nowhere/train.jsonl"])
    with pytest.raises(DataError) as caught:
        read_rows(source, tmp_path, "validation")
    first, second, third = str(caught.value).splitlines()
    assert first.startswith("data.validation: data/trian.jsonl does not exist; in ")
    assert first.endswith("there is train.jsonl")
    assert second.startswith("data.validation: data/train does not exist")
    assert "there is no folder nowhere (looked from " in third
