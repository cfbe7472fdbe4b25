"""A prepared set holds every token of the rows once, is made once, and is whole or not there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_sources import Source, preparation
from tiny_tokenizers import byte_level, fast

from megatune.data import arrays
from megatune.data import prepare as preparing
from megatune.data.prepared import PreparedSet
from megatune.errors import DataError
from megatune.tasks import TaskOptions

ROWS = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(9) for b in range(9)]

LONG_AT_TIMES = TaskOptions(template="{{ text * (10**7 if text == 'long' else 1) }}")


@pytest.fixture
def prepared_from(tmp_path, gpt2_like):
    """`prepared_from(rows, **changed settings) -> PreparedSet`, below tmp_path / "prepared"."""

    def run(rows, *, columns=None, **changed):
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = Source([str(tmp_path / "train.jsonl")], columns=columns or {})
        changed = {"tokenizer": gpt2_like, "folder": tmp_path / "prepared"} | changed
        return preparation([source], **changed).prepare()

    return run


def texts(prepared, tokenizer):
    return [tokenizer.decode(prepared.example(i).input_ids.tolist()) for i in range(prepared.num_examples)]


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_set_holds_every_row_once_with_its_mask(prepared_from, gpt2_like):
    prepared = prepared_from(ROWS)
    assert texts(prepared, gpt2_like) == [f"{r['prompt']}{r['completion']}<|im_end|>" for r in ROWS]
    for number, row in enumerate(ROWS):
        example = prepared.example(number)
        learned = gpt2_like.decode(example.input_ids[example.is_target].tolist())
        assert learned == f"{row['completion']}<|im_end|>"


def test_packed_rows_hold_each_example_once_and_are_never_too_long(prepared_from):
    prepared = prepared_from(ROWS)
    rows = [prepared.row(number) for number in range(prepared.num_rows)]
    assert prepared.num_rows < len(ROWS) / 4
    assert sum(len(row) for row in rows) == prepared.num_examples == len(ROWS)
    assert all(sum(len(example.input_ids) for example in row) <= 64 for row in rows)
    assert sum(len(e.input_ids) for row in rows for e in row) == prepared.num_tokens
    assert sum(int(e.is_target.sum()) for row in rows for e in row) == prepared.num_targets
    assert prepared.report.fill_ratio == prepared.num_tokens / (64 * prepared.num_rows) > 0.9


def test_without_packing_each_example_has_a_row_in_the_order_of_the_file(prepared_from):
    prepared = prepared_from(ROWS, packing=False)
    for number in range(len(ROWS)):
        (only,) = prepared.row(number)
        assert only.input_ids.tolist() == prepared.example(number).input_ids.tolist()


def test_rows_are_views_into_files_and_are_not_loaded(prepared_from):
    prepared = prepared_from(ROWS)
    assert all(isinstance(array, np.memmap) for array in prepared.arrays.values())
    assert np.shares_memory(prepared.row(0)[0].input_ids, prepared.arrays["tokens"])


def test_what_was_cut_and_dropped_is_counted_and_told(prepared_from, gpt2_like):
    long_answer = {"prompt": "2 + 2 =", "completion": " 4" * 100}
    long_prompt = {"prompt": "2 + 2 = " * 100, "completion": " 4"}
    prepared = prepared_from([ROWS[0], long_answer, long_prompt, {"prompt": "a", "completion": ""}])
    report = prepared.report
    assert prepared.num_examples == 2
    assert (report.num_rows_read, report.num_truncated, report.num_too_long, report.num_empty) == (4, 1, 1, 1)
    assert report.num_empty + report.num_too_long == 2
    assert report.num_tokens_cut == len(gpt2_like("2 + 2 =" + " 4" * 100).input_ids) + 1 - 64
    too_long, cut, empty = report.notices(64)
    assert cut.startswith("1 of 4 rows were cut at data.max_seq_length = 64 (")
    assert "begins after 64 tokens" in too_long
    assert "they hold nothing to learn" in empty


def test_a_set_that_is_there_is_used_without_reading_the_rows_again(prepared_from, monkeypatch):
    first = prepared_from(ROWS)
    monkeypatch.setattr(preparing, "build_set", None)
    assert prepared_from(ROWS).folder == first.folder


def test_using_the_tokenizer_in_between_does_not_make_it_another_one(prepared_from, gpt2_like):
    first = prepared_from(ROWS).folder
    gpt2_like(["a", "b b b b"], padding=True, truncation=True, max_length=3)
    assert prepared_from(ROWS).folder == first


@pytest.mark.parametrize(
    "changed",
    [
        {"max_seq_length": 65},
        {"packing": False},
        {"completion_only": False},
        {"seed": 2},
        {"tokenizer": fast(byte_level(300))},
        {"columns": {"prompt": "completion"}},
        {"split_name": "validation"},
    ],
)
def test_whatever_changes_the_tokens_makes_another_set(prepared_from, changed):
    assert prepared_from(ROWS).folder != prepared_from(ROWS, **changed).folder


def test_another_byte_of_data_makes_another_set(prepared_from):
    assert prepared_from(ROWS).folder != prepared_from([*ROWS[:-1], ROWS[0]]).folder


def test_the_seed_of_a_set_that_is_not_packed_changes_nothing(prepared_from):
    assert (
        prepared_from(ROWS, packing=False, seed=1).folder == prepared_from(ROWS, packing=False, seed=2).folder
    )


def test_a_chat_template_is_part_of_the_tokenizer(prepared_from):
    one, other = fast(byte_level(300)), fast(byte_level(300))
    other.chat_template = "{{ messages }}"
    assert prepared_from(ROWS, tokenizer=one).folder != prepared_from(ROWS, tokenizer=other).folder


@pytest.mark.parametrize(
    ("rows", "changed", "problem"),
    [
        ([], {}, r"data\.train is empty"),
        (
            [{"text": " "}, {"text": "a" * 9}],
            {"max_seq_length": 1},
            "of 2 rows 1 hold no text.* and 1 are too long",
        ),
        (
            [ROWS[0], {"body": "x"}],
            {},
            r"train\.jsonl:2 \(row 2\) lacks a column: found body; accepted: text or ",
        ),
        (
            [{"text": None, "n": 1}],
            {},
            r"found n; without a value: text; .* Give text a value in this row, or take the row out",
        ),
        ([{"body": "x"}], {}, r"data\.train\.columns, for example \{text: body\}"),
        ([{"prompt": "a", "completion": 4}], {}, r"train\.jsonl:1 \(row 1\) has a completion that is a int"),
        (ROWS, {"vocab_size": 20}, r"train\.jsonl:1 .*embedding of the model has 20 rows \(ids 0 to 19\)"),
        (ROWS, {"tokenizer": fast(byte_level(300), eos_token=None)}, "no end-of-sequence token"),
        (
            [{"text": "x", "label": "a"}, {"text": "long", "label": "b"}],
            {
                "task": "classification",
                "options": TaskOptions(template="{{ text * (10**7 if text == 'long' else 1) }}"),
            },
            r"train\.jsonl:2 \(row 2\) cannot be written by data\.template: .* 10000000 characters",
        ),
        (ROWS, {"columns": {"promt": "q"}}, r"columns maps promt, which task text does not read; it reads "),
        (ROWS, {"task": "poetry"}, "no task 'poetry'; tasks are text, dialogue"),
    ],
)
def test_data_that_cannot_be_used_is_refused_and_leaves_nothing_behind(
    prepared_from, tmp_path, rows, changed, problem
):
    with pytest.raises(DataError, match=problem):
        prepared_from(rows, **changed)
    assert not (tmp_path / "prepared").exists() or left_in(tmp_path / "prepared") == []


def test_the_vocabulary_is_checked_also_when_the_set_is_there_already(prepared_from):
    prepared = prepared_from(ROWS)
    prepared_from(ROWS, vocab_size=prepared.max_token_id + 1)
    with pytest.raises(DataError, match="the vocabulary is larger than the embedding"):
        prepared_from(ROWS, vocab_size=prepared.max_token_id)


def test_rows_are_filled_up_with_an_id_that_the_embedding_has(prepared_from):
    tokenizer = fast(byte_level(300), pad_token="<pad, added last>")
    prepared = prepared_from(ROWS, tokenizer=tokenizer)
    assert tokenizer.pad_token_id > prepared.max_token_id
    prepared = prepared_from(ROWS, tokenizer=tokenizer, vocab_size=prepared.max_token_id + 1)
    assert prepared.pad_id <= prepared.max_token_id


def test_a_full_disk_is_told_with_what_is_free_and_leaves_nothing_behind(
    prepared_from, tmp_path, monkeypatch
):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrays, "sync", full)
    with pytest.raises(DataError, match=r"no space left to prepare data in .*iB free"):
        prepared_from(ROWS)
    assert left_in(tmp_path / "prepared") == []


def test_whoever_comes_second_takes_the_set_of_the_first(prepared_from, monkeypatch, tmp_path):
    real = preparing.write_manifest

    def slower(*args, **kwargs):
        monkeypatch.setattr(preparing, "write_manifest", real)
        prepared_from(ROWS)  # another process finishes first
        real(*args, **kwargs)

    monkeypatch.setattr(preparing, "write_manifest", slower)
    prepared = prepared_from(ROWS)
    prepared.verify()
    assert left_in(tmp_path / "prepared") == [prepared.fingerprint]


def test_two_processes_may_prepare_the_same_set_at_once(tmp_path, gpt2_like):
    gpt2_like.save_pretrained(tmp_path / "tok")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS * 50))
    script = """
from pathlib import Path; from data_sources import preparation
from transformers import AutoTokenizer
made = preparation(["train.jsonl"], AutoTokenizer.from_pretrained("tok"), Path("prepared")).prepare()
made.verify()
print(made.fingerprint)
"""
    start = [sys.executable, "-c", script]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    pipes = {"stdout": subprocess.PIPE, "text": True, "env": environ}
    both = [subprocess.Popen(start, cwd=tmp_path, **pipes) for _ in range(2)]
    printed = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert left_in(tmp_path / "prepared") == list(printed)


def test_what_a_killed_process_left_is_removed_after_a_day_and_not_before(prepared_from, tmp_path):
    for name, age_s in (("old.x.tmp", 25 * 3600), ("new.x.tmp", 3600)):
        half = tmp_path / "prepared" / name / "set"
        half.mkdir(parents=True)
        (half / "tokens.npy").write_bytes(b"half")
        then = half.stat().st_mtime - age_s
        for path in (half / "tokens.npy", half, half.parent):
            os.utime(path, (then, then))
    prepared = prepared_from(ROWS)
    assert left_in(tmp_path / "prepared") == sorted([prepared.fingerprint, "new.x.tmp"])


def cut_short(folder: Path) -> None:
    os.truncate(folder / "tokens.npy", (folder / "tokens.npy").stat().st_size - 1)


def of_another_schema(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema": 0}))


def of_another_count(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(re.sub(r'"num_rows": \d+', '"num_rows": 7', text, count=1))


def of_another_type(folder: Path) -> None:
    array = np.load(folder / "is_target.npy")
    np.save(folder / "is_target.npy", array.view(np.int8))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (cut_short, r"tokens\.npy has \d+ bytes, its manifest says"),
        (of_another_schema, "its schema is 0, this version reads 7"),
        (of_another_count, r"manifest\.json changed since it was written"),
        (of_another_type, r"is_target\.npy holds int8"),
        (lambda folder: (folder / "manifest.json").unlink(), "No such file"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "Expecting property name"),
        (lambda folder: (folder / "row_offsets.npy").unlink(), "No such file"),
    ],
)
def test_a_damaged_set_is_not_opened(prepared_from, damage, problem):
    prepared = prepared_from(ROWS)
    damage(prepared.folder)
    with pytest.raises(DataError, match=rf"{problem}.*Delete that folder and prepare again"):
        PreparedSet.open(prepared.folder)


@pytest.mark.parametrize("offset", [0, 200, -1])
def test_a_flipped_bit_is_found_by_verify(prepared_from, offset):
    prepared = prepared_from(ROWS)
    prepared.verify()
    file = prepared.folder / "tokens.npy"
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"tokens\.npy changed since it was written"):
        prepared.verify()
