"""A file is hashed once, and again as soon as there is a sign that it changed."""

import os

import pytest

from megatune.data import hash_memo
from megatune.data.hash_memo import HashMemo
from megatune.files import hash_file


@pytest.fixture
def hashed(monkeypatch):
    """The files that were read."""
    read = []
    monkeypatch.setattr(hash_memo, "hash_file", lambda path: read.append(path.name) or hash_file(path))
    return read


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once."""
    monkeypatch.setattr(hash_memo, "SETTLED_AFTER_NS", -1)


def asked(tmp_path):
    memo = HashMemo(tmp_path / "folder/hashes.json")
    found = memo.hash_of(tmp_path / "a")
    memo.save()
    return found


@pytest.mark.usefixtures("settled")
def test_an_unchanged_file_is_not_read_again(tmp_path, hashed):
    (tmp_path / "a").write_text("one")
    assert asked(tmp_path) == asked(tmp_path) == hash_file(tmp_path / "a")
    assert hashed == ["a"]


@pytest.mark.usefixtures("settled")
def test_a_change_that_keeps_size_and_date_is_found(tmp_path):
    (tmp_path / "a").write_text("one")
    first, before = asked(tmp_path), (tmp_path / "a").stat()
    (tmp_path / "a").write_text("two")
    os.utime(tmp_path / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (tmp_path / "a").stat().st_mtime_ns == before.st_mtime_ns
    assert asked(tmp_path) == hash_file(tmp_path / "a") != first


def test_a_file_that_was_just_written_is_not_remembered(tmp_path, hashed):
    (tmp_path / "a").write_text("one")
    asked(tmp_path)
    asked(tmp_path)
    assert hashed == ["a", "a"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"/a": 3}', '{"/a": [1]}'])
@pytest.mark.usefixtures("settled")
def test_a_damaged_memo_is_an_empty_one(tmp_path, hashed, content):
    (tmp_path / "a").write_text("one")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/hashes.json").write_text(content)
    assert asked(tmp_path) == hash_file(tmp_path / "a")
    assert asked(tmp_path) and hashed == ["a"]
