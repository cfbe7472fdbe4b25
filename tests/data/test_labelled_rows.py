"""Rows for a classifier head: which token carries the label, and what cutting a row does to it."""

import pytest
from tiny_tokenizers import CharTokenizer, byte_level, fast

from megatune.data.labelled import END, IGNORED, START, labeller
from megatune.errors import DataError
from megatune.tasks import RowError, TaskOptions

NER = TaskOptions(labels=("LOC", "PER"))
TOPIC = TaskOptions(labels=("a", "b", "c"))


@pytest.fixture(scope="module")
def tokenizer():
    return fast(byte_level(300))


def test_the_last_token_of_a_text_has_its_class_however_short_it_is_cut(tokenizer):
    row = labeller("classification", tokenizer)({"text": "Once upon a time", "label": "b"}, {}, TOPIC)

    for length in (100, 3):
        example = row.example(length)
        assert example.labels.tolist()[-1] == 1
        assert set(example.labels.tolist()[:-1]) == {IGNORED}
        assert example.is_target.sum() == 1


def test_several_labels_are_the_bits_of_a_number(tokenizer):
    options = TaskOptions(labels=("a", "b", "c"), multi_label=True)
    label = labeller("classification", tokenizer)

    assert label({"text": "x", "labels": ["a", "c"]}, {}, options).labels[-1] == 0b101
    assert label({"text": "x", "labels": []}, {}, options).example(9).is_target.sum() == 1


def test_the_first_token_of_each_word_has_its_tag_and_the_others_none(tokenizer):
    row = {"tokens": ["Ünal", "saw", "Rome!"], "tags": ["B-PER", "O", "B-LOC"]}

    found = labeller("ner", tokenizer)(row, {}, NER)

    text = "Ünal saw Rome!"
    for at, word in zip(found.word_starts, row["tokens"], strict=True):
        start, stop = found.offsets[at]
        assert text[start:stop].strip() and word.startswith(text[start:stop].strip()[:1])
    tagged = [label for label in found.labels if label != IGNORED]
    assert tagged == [3, 0, 1], "O, B-LOC, I-LOC, B-PER, I-PER"
    assert len(found.labels) > 3
    cut = found.example(found.word_starts[1] + 1)
    assert cut.is_target.sum() == 2, "the third word is beyond"


def test_a_span_is_marked_where_it_begins_and_ends_inside_the_context(tokenizer):
    row = {"question": "Where is Rome?", "context": "Rome is in Italy. Italy!", "answer": "Italy"}

    found = labeller("qa", tokenizer)(row, {}, TaskOptions())

    starts = [at for at, label in enumerate(found.labels) if label != IGNORED and label & START]
    ends = [at for at, label in enumerate(found.labels) if label != IGNORED and label & END]
    assert (len(starts), len(ends)) == (1, 1)
    text = found.exchange.prompt
    assert text[found.offsets[starts[0]][0] : found.offsets[ends[0]][1]].strip() == "Italy"
    assert found.labels[0] == IGNORED, "the question is no answer"
    assert found.example(100).is_target.sum() == 1
    assert found.example(ends[0]).is_target.sum() == 0, "the answer is cut off"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "q", "answer": "a"}, "has no context"),
        ({"question": "q", "context": "c", "answer": "z"}, "word for word"),
    ],
)
def test_a_question_without_its_answer_in_a_context_is_refused(tokenizer, row, words):
    with pytest.raises(RowError, match=words):
        labeller("qa", tokenizer)(row, {}, TaskOptions())


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(DataError, match=r"slow tokenizer.*model\.head=lm"):
        labeller("ner", CharTokenizer())
