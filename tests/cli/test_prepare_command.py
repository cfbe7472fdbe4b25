"""`megatune prepare` as users call it: files of all kinds, one report, and a remark when something changed."""

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

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


def test_training_that_prepares_for_itself_tells_and_draws_what_prepare_does(
    run_file, rows_file, output_dir, tmp_path
):
    path = tmp_path / "test.jsonl"
    path.write_text('{"text": ""}\n{"text": "another"}\n')
    given = [f"data.validation={rows_file}", f"data.test={path}", "train.max_steps=1"]

    done = megatune("train", run_file, *given)

    assert done.code == 0, done.text
    for words in (
        "note: train: 21 of 24 rows say the same as a row before them",
        "note: validation: 21 of 24 rows say the same as a row before them",
        "note: test: 1 of 2 rows were dropped: they hold nothing to learn",
        "note: validation: 24 rows say what a training row says: the scores show memory there",
    ):
        assert done.text.count(words) == 1, words
    drawn = output_dir / "data.png"
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert f"data: {drawn}" in done.text

    before = drawn.stat().st_mtime_ns
    assert megatune("prepare", run_file, *given).code == 0
    assert drawn.stat().st_mtime_ns == before, "it shows these sets already"
    assert megatune("prepare", run_file, *given, "data.max_seq_length=32").code == 0
    assert drawn.stat().st_mtime_ns != before


def test_one_row_is_counted_as_one(run_file, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text('{"text": "one"}\n')
    done = megatune("prepare", run_file, f"data.train={path}", f"data.validation={path}")
    assert done.code == 0, done.text
    assert "train: 1 example in 1 row of " in done.out
    assert "validation: 1 row says what a training row says" in done.out


def test_a_file_in_another_encoding_is_refused_with_what_it_may_be(run_file, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "ok"}\n{"text": "café"}\n'.encode("cp1252"))
    done = megatune("prepare", run_file, f"data.train={path}")
    assert_refused(done, "line 2", "In cp1252 it would read", "café", "iconv -f cp1252 -t utf-8 rows.jsonl")


LOADED = """
import sys
from megatune.cli import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "datasets", "deepspeed", "matplotlib"}
    print("loaded:", *sorted(heavy & sys.modules.keys()), file=sys.stderr)
"""


def prepare_and_tell_what_was_loaded(run_file: Path, *overrides: str) -> tuple[dict, set[str]]:
    """The answer of `prepare --json` in a process of its own, and the heavy packages it has imported."""
    command = [sys.executable, "-c", LOADED, "prepare", str(run_file), "--json", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), set(done.stderr.splitlines()[-1].split()[1:])


def test_asked_again_nothing_heavy_is_loaded_until_something_changes(run_file: Path, tmp_path: Path):
    own = tmp_path / "own.jsonl"
    own.write_text("".join(f'{{"text": "row {n} of mine"}}\n' for n in range(20)))
    given = (f"data.train={own}", "data.val_size=4")
    wait_until_settled(own)
    first, loaded = prepare_and_tell_what_was_loaded(run_file, *given)
    assert "torch" in loaded

    again, loaded = prepare_and_tell_what_was_loaded(run_file, *given)
    assert loaded == set()
    assert again == first, "the same sets and reports"
    assert set(first["splits"]) == {"train", "validation"}
    assert prepare_and_tell_what_was_loaded(run_file, *given, "train.learning_rate=3e-5")[1] == set()

    seeded, loaded = prepare_and_tell_what_was_loaded(run_file, *given, "train.seed=7")
    assert "torch" in loaded
    assert seeded["splits"]["train"]["folder"] != first["splits"]["train"]["folder"]
    own.write_text(own.read_text().replace("mine", "ours"))
    changed, loaded = prepare_and_tell_what_was_loaded(run_file, *given)
    assert "torch" in loaded
    assert changed["splits"]["train"]["folder"] != first["splits"]["train"]["folder"]


def test_a_set_that_was_damaged_is_not_taken_on_trust(run_file: Path, rows_file: Path):
    wait_until_settled(rows_file)
    first, _ = prepare_and_tell_what_was_loaded(run_file)
    tokens = Path(first["splits"]["train"]["folder"]) / "tokens.npy"
    tokens.write_bytes(tokens.read_bytes()[:-4])

    done = megatune("prepare", run_file)

    assert_refused(done, "is not a whole prepared data set", "Delete that folder")


def wait_until_settled(path: Path) -> None:
    """Wait until a file is so old that its times tell whether it was written to again."""
    time.sleep(max(0.0, path.stat().st_ctime + 2.1 - time.time()))
