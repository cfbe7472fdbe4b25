"""Folders, globs, compressed files and blocks: the same rows, with the same places, however they are read."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from data_sources import Source, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from megatune.data import jsonfiles, rows
from megatune.data.read import find_files
from megatune.errors import DataError
from megatune.launch.run_folder import RunFolder

TEXTS = [f"row {number}\nof many é" for number in range(2500)]


def write(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".gz"):
        data = gzip.compress(data)
    elif name.endswith(".zst"):
        data = pyarrow.compress(data, "zstd", asbytes=True)
    path.write_bytes(data)
    return path


def json_lines(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def csv(texts):
    return ("text\n" + "".join(f'"{text}"\n' for text in texts)).encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", json_lines(TEXTS)),
        ("a.jsonl.gz", json_lines(TEXTS)),
        ("a.jsonl.zst", json_lines(TEXTS)),
        ("a.json", json.dumps([{"text": text} for text in TEXTS], indent=1).encode()),
        ("a.json.gz", json.dumps([{"text": text} for text in TEXTS]).encode()),
        ("a.csv", csv(TEXTS)),
        ("a.csv.gz", csv(TEXTS)),
        ("a.tsv.zst", csv(TEXTS)),
        ("a.txt.gz", "\n\n".join(TEXTS).encode()),
    ],
)
def test_every_kind_of_file_gives_the_rows_in_order_with_their_numbers(tmp_path, name, data):
    path = write(tmp_path, name, data)
    found = rows_of(Source([str(path)]), tmp_path)
    assert [row.values["text"] for row in found] == TEXTS
    assert all(row.where.endswith(f" (row {number})") for number, row in enumerate(found, start=1))
    assert found[1999].where.startswith(f"{path}")


def test_parquet_is_read_in_batches(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "a.parquet")
    found = rows_of(Source([str(tmp_path / "a.parquet")]), tmp_path)
    assert [row.values["text"] for row in found] == TEXTS
    assert found[2000].where == f"{tmp_path / 'a.parquet'} (row 2001)"


@settings(deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=20),
    blank=st.booleans(),
    size=st.integers(1, 60),
)
def test_json_lines_are_the_same_wherever_they_are_cut_into_blocks(tmp_path_factory, texts, blank, size):
    folder = tmp_path_factory.mktemp("rows")
    end = "\n\n" if blank else "\n"
    lines = [json.dumps({"text": text}, ensure_ascii=False) + end for text in texts]
    path = write(folder, "a.jsonl", "".join(lines).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonfiles, "BLOCK_BYTES", size)
        found = rows_of(Source([str(path)]), folder)
    assert [row.values["text"] for row in found] == texts
    step = 2 if blank else 1
    assert [row.where for row in found] == [f"{path}:{step * i + 1} (row {i + 1})" for i in range(len(texts))]


@settings(deadline=None)
@given(
    items=st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=9)), max_size=9),
    size=st.integers(1, 40),
)
def test_an_array_is_the_same_however_little_of_it_is_in_memory(tmp_path_factory, items, size):
    folder = tmp_path_factory.mktemp("rows")
    path = write(folder, "a.json", json.dumps(items, ensure_ascii=True, indent=2).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonfiles, "_ARRAY_BYTES", size)
        assert [row.values for row in rows_of(Source([str(path)]), folder)] == items


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet"])
@pytest.mark.parametrize("count", [1, 1000, 1001, 2500, 9999])
def test_max_samples_takes_the_first_rows_over_all_files(tmp_path, name, count):
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / name)
    else:
        data = json_lines(TEXTS) if "jsonl" in name else csv(TEXTS)
        data = json.dumps([{"text": text} for text in TEXTS]).encode() if name == "a.json" else data
        write(tmp_path, name, data)
    write(tmp_path, "b.jsonl", json_lines(["more"] * 10))
    source = Source([str(tmp_path / name), str(tmp_path / "b.jsonl")], max_samples=count)
    expected = [*TEXTS, *["more"] * 10][:count]
    assert [row.values["text"] for row in rows_of(source, tmp_path)] == expected


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"}\n{broken\n'),
        ("a.csv", b'text\na\nb\n"one","too many"\n'),
        ("a.txt", b"a\n\nb\n\n\xff\n"),
    ],
)
def test_max_samples_is_not_stopped_by_a_row_behind_the_last_one(tmp_path, name, data):
    source = Source([str(write(tmp_path, name, data))], max_samples=2)
    assert [row.values["text"] for row in rows_of(source, tmp_path)] == ["a", "b"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("set/b.jsonl", "set/a.csv", "set/deep/c.jsonl.gz", "set/.hidden.jsonl", "set/README.md"):
        write(tmp_path, name, csv([name]) if ".csv" in name else json_lines([name]))
    for name in ("named/train-1.jsonl", "named/train-2.jsonl", "named/valid.jsonl", "named/dev/more.jsonl"):
        write(tmp_path, name, json_lines([name]))
    return tmp_path


@pytest.mark.parametrize(
    ("path", "split_name", "split", "expected"),
    [
        ("set", "train", None, ["set/a.csv", "set/b.jsonl", "set/deep/c.jsonl.gz"]),
        ("set", "validation", None, ["set/a.csv", "set/b.jsonl", "set/deep/c.jsonl.gz"]),
        ("set/*.jsonl", "train", None, ["set/b.jsonl"]),
        ("set/**/*.*sv", "train", None, ["set/a.csv"]),
        ("named", "train", None, ["named/train-1.jsonl", "named/train-2.jsonl"]),
        ("named", "validation", None, ["named/dev/more.jsonl", "named/valid.jsonl"]),
        ("named", "train", "validation", ["named/dev/more.jsonl", "named/valid.jsonl"]),
        ("named/*2.jsonl", "train", None, ["named/train-2.jsonl"]),
    ],
)
def test_folders_and_globs_stand_for_their_files(folder, path, split_name, split, expected):
    found = rows_of(Source([path], split=split), folder / "scratch", split_name)
    assert [row.values["text"] for row in found] == expected


def prepared_run(run):
    write(run, "prepared/0123/manifest.json", b"{}")


def hashed_run(run):
    write(run, "data-hashes.json", b"{}")


def trained_run(run):
    RunFolder(run).create()
    write(run, "metrics.jsonl", b"{}")


@pytest.mark.parametrize("begin", [prepared_run, hashed_run, trained_run])
def test_what_runs_have_written_below_a_folder_is_no_data(folder, begin):
    begin(folder / "set/runs/first")
    write(folder, "set/runs/first/answers/step-00000001/validation.jsonl", json_lines(["an answer"]))
    found = rows_of(Source(["set"]), folder / "scratch")
    assert [row.values["text"] for row in found] == ["set/a.csv", "set/b.jsonl", "set/deep/c.jsonl.gz"]
    asked = rows_of(Source(["set/runs/first/answers"], split="validation"), folder / "scratch")
    assert [row.values["text"] for row in asked] == ["an answer"], "where it is asked for, it is"


@pytest.mark.parametrize(
    ("path", "split", "problem"),
    [
        ("set/*.parquet", None, r"no file is called set/\*\.parquet \(looked from "),
        ("set/*", None, r"set/README\.md ends in '\.md'"),
        ("set", "test", "the folder set has no split 'test'; its file names tell train"),
        ("named", "test", "has no split 'test'; its file names tell validation, train"),
        ("empty", None, "the folder empty holds no data files"),
    ],
)
def test_a_folder_or_glob_without_what_was_asked_for_is_told(folder, path, split, problem):
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=problem):
        find_files(Source([path], split=split), split_name="train", scratch=folder)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.csv.gz"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"not compressed at all"[: len(data)]]
)
def test_a_damaged_compressed_file_is_named(tmp_path, name, damage):
    path = write(tmp_path, name, json_lines(TEXTS) if "json" in name else csv(TEXTS))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"a\..*is no whole \.(gz|zst) file: "):
        rows_of(Source([str(path)]), tmp_path)


@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [
        ('{"text": "café, été"}'.encode("cp1252"), "cp1252", "café, été"),
        ("text\ncafé".encode("utf-16"), "utf-16", "text"),
    ],
)
def test_the_encoding_of_a_file_that_is_not_utf8_is_guessed_and_shown(tmp_path, data, encoding, text):
    path = write(tmp_path, "a.jsonl", data)
    with pytest.raises(
        DataError, match=rf"In {encoding} it would read .*{text}.*iconv -f {encoding} -t utf-8"
    ):
        rows_of(Source([str(path)]), tmp_path)


def test_a_place_far_behind_is_counted_from_the_beginning_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonfiles, "BLOCK_BYTES", 100)
    path = write(tmp_path, "a.jsonl", json_lines(TEXTS[:50]) + b'{"text": \n' + json_lines(TEXTS))
    with pytest.raises(DataError, match=r"a\.jsonl:51:10: not JSON"):
        rows_of(Source([str(path)]), tmp_path)


def test_blocks_hold_a_bounded_number_of_rows(tmp_path):
    path = write(tmp_path, "a.csv", csv(TEXTS))
    found = find_files(Source([str(path)]), split_name="train", scratch=tmp_path)
    assert [block.num_rows for _, block in found.blocks()] == [rows.BLOCK_ROWS] * 2 + [500]
