"""Kills, full disks and rows that cannot be used: a whole set or none, and a message with the place."""

import json
import os
import random
import signal
import subprocess
import time

import pytest
from data_sources import preparation
from tiny_tokenizers import byte_level, fast

from megatune.data import jsonfiles, shared
from megatune.errors import DataError

ROWS = [{"text": f"{i} and {i * i} and so on"} for i in range(4000)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("trial", range(12))
def test_a_set_is_whole_or_not_there_whenever_the_preparing_is_killed(
    tmp_path, gpt2_like, trial, monkeypatch
):
    monkeypatch.setattr(jsonfiles, "BLOCK_BYTES", 10_000)
    path = write(tmp_path / "a.jsonl", ROWS)
    options = {"val_size": 0.1}
    began = time.monotonic()
    whole = preparation([path], gpt2_like, tmp_path / "whole", **options).prepare_both()
    takes_s = time.monotonic() - began
    child = os.fork()
    if child == 0:
        try:
            preparation([path], gpt2_like, tmp_path / "p", **options).prepare_both()
        finally:
            os._exit(0)
    time.sleep(random.Random(trial).uniform(0, 1.2 * takes_s))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for left in (tmp_path / "p").glob("*") if (tmp_path / "p").exists() else ():
        assert left.suffix == ".tmp" or (left / "manifest.json").exists()
    again = preparation([path], gpt2_like, tmp_path / "p", **options).prepare_both()
    for one, other in zip(whole, again, strict=True):
        other.verify()
        assert {file.name: file.read_bytes() for file in one.folder.iterdir()} == {
            file.name: file.read_bytes() for file in other.folder.iterdir()
        }


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_disk_that_is_too_small_is_told_and_left_empty(tmp_path, gpt2_like, num_workers):
    path = write(tmp_path / "a.jsonl", ROWS * 4)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], check=True)
    try:
        with pytest.raises(
            DataError, match=r"no space left to prepare data in .*choose another train\.output_dir"
        ):
            preparation([path], gpt2_like, disk / "p", num_workers=num_workers).prepare()
        assert list((disk / "p").iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_worker_that_cannot_tell_the_others_is_still_heard(tmp_path, gpt2_like, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared.Path, "write_text", full)
    (tmp_path / "a.jsonl").write_bytes(b'{"txt": "a"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1 \(row 1\) lacks a column"):
        preparation([tmp_path / "a.jsonl"], gpt2_like, tmp_path / "p").prepare()


@pytest.mark.parametrize(
    ("rows", "options", "problem"),
    [
        ([{"text": "fine"}, {"text": 5}], {}, r"a\.jsonl:2 \(row 2\) has a text that is a int \(5\)"),
        ([{"text": "fine"}, {"text": ["a"]}], {}, r"a\.jsonl:2 \(row 2\) has a text that is a list"),
        ([{"text": "half \ud83d"}], {}, r"a\.jsonl:1 \(row 1\) holds half of a character \(\\ud83d without"),
        ([{"text": "one"}], {"val_size": 0.5}, "val_size = 0.5 of 1 usable rows leaves none to train on"),
        ([{"text": "same"}] * 9, {"val_size": 3}, "of 9 usable rows leaves none to train on"),
        ([{"text": " "}] * 9, {"val_size": 3}, "nothing to train on: of 9 rows 9 hold no text"),
        ([], {"val_size": 3}, r"data\.train is empty"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, gpt2_like, rows, options, problem):
    made = preparation([write(tmp_path / "a.jsonl", rows)], gpt2_like, tmp_path / "p", **options)
    with pytest.raises(DataError, match=problem):
        made.prepare_both() if options else made.prepare()
    assert list((tmp_path / "p").iterdir()) == []


def test_an_error_of_the_chat_template_names_the_row(tmp_path):
    tokenizer = fast(byte_level(300))
    tokenizer.chat_template = (
        "{% if messages[0]['content'] == 'no' %}{{ raise_exception('not this') }}{% endif %}a"
    )
    talks = [
        [{"role": "user", "content": said}, {"role": "assistant", "content": "b"}] for said in ("yes", "no")
    ]
    path = write(tmp_path / "a.jsonl", [{"messages": talk} for talk in talks])
    with pytest.raises(DataError, match=r"a\.jsonl:2 \(row 2\) is refused by the chat template.*not this"):
        preparation([path], tokenizer, tmp_path / "p", task="dialogue", completion_only=False).prepare()


def test_one_row_is_enough(tmp_path, gpt2_like):
    prepared = preparation(
        [write(tmp_path / "a.jsonl", [{"text": "one"}])], gpt2_like, tmp_path / "p"
    ).prepare()
    assert (prepared.num_rows, prepared.num_examples) == (1, 1)
