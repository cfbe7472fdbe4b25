"""The held-out dialogues ask nothing that training asked."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatune.data.dialogues import (
    chatterbot_conversations,
    normalised,
    questions,
    split_by_question,
    write_dialogues,
)
from megatune.data.fetch import fetch
from megatune.data.pins import CHATTERBOT
from megatune.errors import DataError


def asked_in(conversations):
    return {question for turns in conversations for question in questions(turns)}


TURNS = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=6)


@settings(deadline=None)
@given(st.lists(TURNS, max_size=30), st.integers(0, 9), st.floats(0, 0.5))
def test_no_question_is_on_both_sides_and_no_conversation_is_lost(conversations, seed, share):
    train, valid = split_by_question(conversations, valid_share=share, seed=seed)
    assert not asked_in(train) & asked_in(valid)
    assert sorted(train + valid) == sorted(conversations)
    assert len(valid) <= share * len(conversations)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What's  AI?", "whats ai", True),
        ("Café", "CAFE!", True),
        ("2+2", "22", True),
        ("???", "?", False),
        ("你好", "你好\N{IDEOGRAPHIC FULL STOP}", True),
    ],
)
def test_questions_are_the_same_but_for_case_accents_and_punctuation(one, other, same):
    assert (normalised(one) == normalised(other)) is same


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "english").mkdir()
    (tmp_path / "english" / "a.yml").write_text(
        "categories: [a]\nconversations:\n- - Hi\n  - Hello\n  - How are you?\n- - Hi\n  - Hello\n"
        "- - 7\n  - yes\n- - Bye\n  - ''\n"
    )
    return tmp_path / "english"


def test_conversations_are_whole_exchanges_of_text_and_none_is_there_twice(corpus):
    assert chatterbot_conversations(corpus) == [["Hi", "Hello"], ["7", "True"]]


def test_rows_are_messages_and_the_same_seed_writes_the_same_files(corpus, tmp_path):
    paths = tmp_path / "train.jsonl", tmp_path / "valid.jsonl"
    assert write_dialogues(corpus, *paths, valid_share=0.5, seed=0) == (1, 1)
    first = [path.read_bytes() for path in paths]
    row = json.loads(first[0])
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    write_dialogues(corpus, *paths, valid_share=0.5, seed=0)
    assert [path.read_bytes() for path in paths] == first


@pytest.mark.parametrize("content", ["categories: [a]", "conversations: 3", "a: [", "just text"])
def test_a_file_of_another_shape_is_named(corpus, content):
    (corpus / "b.yml").write_text(content)
    with pytest.raises(DataError, match=r"b\.yml is not a ChatterBot corpus file"):
        chatterbot_conversations(corpus)


def test_a_folder_without_a_corpus_is_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.yml files"):
        chatterbot_conversations(tmp_path)


@pytest.mark.real_model
def test_the_real_corpus_is_split_without_a_shared_question(tmp_path):
    fetch(CHATTERBOT, tmp_path / "corpus")
    num_train, num_valid = write_dialogues(
        tmp_path / "corpus", tmp_path / "train.jsonl", tmp_path / "valid.jsonl", valid_share=0.1, seed=0
    )
    assert num_train > 750
    assert 80 <= num_valid <= 0.1 * (num_train + num_valid)
    sides = []
    for name in ("train.jsonl", "valid.jsonl"):
        rows = [json.loads(line)["messages"] for line in (tmp_path / name).read_text().splitlines()]
        sides.append({normalised(m["content"]) for messages in rows for m in messages if m["role"] == "user"})
    assert not sides[0] & sides[1]
