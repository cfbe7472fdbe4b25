"""`megatune prepare` as users call it: files of all kinds, one report, and a remark when something changed."""

import gzip
import json

import pytest
from command_line import assert_refused, megatune


@pytest.fixture
def data(tmp_path):
    """A folder with rows of two kinds, and what they are mixed by."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"prompt": f"{i} + {i} =", "completion": " yes" if i % 3 else " no"} for i in range(60)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "part-1.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "more.csv").write_text("question,answer\n" + "".join(f"is {i} it, yes\n" for i in range(20)))
    csv = f"{{path: {folder}/more.csv, weight: 1, columns: {{prompt: question, completion: answer}}}}"
    return f"data.train=[{{path: '{folder}/*.gz', weight: 3}}, {csv}]"


def test_a_mixture_is_divided_reported_and_prepared_once(run_file, output_dir, data):
    given = [data, "data.validation=null", "data.val_size=0.1", "data.max_seq_length=48"]
    done = megatune("prepare", run_file, *given, "--json")
    assert done.code == 0, done.text
    told = json.loads(done.out)
    train, validation = told["splits"]["train"], told["splits"]["validation"]
    assert train["num_examples"] + validation["num_examples"] == 80
    assert validation["num_examples"] >= 8
    assert told["rows_in_train"] == {"validation": 0}
    assert set(train["report"]["labels"]) == {"yes", "no"}
    assert (output_dir / "data.png").read_bytes().startswith(b"\x89PNG")

    again = megatune("prepare", run_file, *given)
    assert again.code == 0, again.text
    assert "prepared anew" not in again.err
    assert f"of the room filled: {train['folder']}" in again.out
    assert "answers: 'yes'" in again.out

    changed = megatune("prepare", run_file, *given, "data.max_seq_length=40")
    assert "train: prepared anew, because data.max_seq_length was 48 and is 40" in changed.err


def test_validation_rows_that_are_training_rows_are_told(run_file, rows_file):
    done = megatune("prepare", run_file, f"data.validation={rows_file}")
    assert done.code == 0, done.text
    assert "24 rows say what a training row says" in done.text
    assert "21 of 24 rows say the same as a row before them" in done.text


def test_a_file_in_another_encoding_is_refused_with_what_it_may_be(run_file, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "ok"}\n{"text": "café"}\n'.encode("cp1252"))
    done = megatune("prepare", run_file, f"data.train={path}")
    assert_refused(done, "line 2", "In cp1252 it would read", "café", "iconv -f cp1252 -t utf-8 rows.jsonl")
