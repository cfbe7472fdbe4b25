"""Rows for a classifier head: which token carries the label, and what cutting a row does to it."""

import pytest
import torch
from tiny_tokenizers import CharTokenizer, byte_level, fast

from megatune.data.labelled import head_labels, labeller
from megatune.errors import DataError
from megatune.evaluate.classify import read_answers
from megatune.model.heads import HeadSpec
from megatune.tasks import RowError, TaskOptions
from megatune.tasks.labels import END, IGNORED, START

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


def test_a_text_cut_at_the_left_keeps_its_end_its_class_and_a_bos_in_front(tokenizer, llama_like):
    values = {"text": "Once upon a time there was an end", "label": "b"}
    for kind, front in ((tokenizer, []), (llama_like, [llama_like.bos_token_id])):
        row = labeller("classification", kind)(values, {}, TOPIC)

        cut = row.example(5, "left")

        assert cut.input_ids.tolist() == [*front, *row.input_ids[len(front) - 5 :]]
        assert cut.labels.tolist() == [IGNORED] * 4 + [1]
        assert cut.is_target.sum() == 1
        assert row.example(100, "left").input_ids.tolist() == row.input_ids
        assert row.example(1, "left").labels.tolist() == [1]


def test_words_that_are_left_keep_their_tags_when_the_left_is_cut(llama_like):
    row = {"tokens": ["Ünal", "saw", "Rome!"], "tags": ["B-PER", "O", "B-LOC"]}
    found = labeller("ner", llama_like)(row, {}, NER)
    length = len(found.input_ids)

    for first, tags in ((found.word_starts[1], [0, 1]), (found.word_starts[1] + 1, [1])):
        cut = found.example(length - first + 1, "left")
        assert cut.input_ids.tolist() == [llama_like.bos_token_id, *found.input_ids[first:]]
        assert [label for label in cut.labels.tolist() if label != IGNORED] == tags
        assert cut.is_target.sum() == len(tags)


def test_of_a_question_the_context_is_cut_at_the_left_and_an_answer_not_all_there_has_no_loss(llama_like):
    row = {
        "question": "Where is Rome?",
        "context": "Rome is, as we all know, in Northern Italy.",
        "answer": "Italy",
    }
    found = labeller("qa", llama_like)(row, {}, TaskOptions())
    length, num_front = len(found.input_ids), len(llama_like("Where is Rome?\n").input_ids)
    (start,) = (at for at, label in enumerate(found.labels) if label != IGNORED and label & START)

    whole = found.example(length - start + num_front, "left")
    less = found.example(length - start + num_front - 1, "left")

    assert whole.input_ids.tolist() == found.input_ids[:num_front] + found.input_ids[start:]
    assert (whole.labels[num_front] & START, whole.is_target.sum()) == (START, 1)
    assert set(whole.labels[:num_front].tolist()) == {IGNORED}
    assert less.is_target.sum() == 0
    assert found.example(3, "left").input_ids.tolist() == found.input_ids[:3]


def test_answers_are_read_at_the_tokens_that_are_left(llama_like):
    def read(task, values, options, num_cut, likeliest):
        """The answer where output `likeliest[0]` is the likeliest at the token of that place, and so on."""
        row = labeller(task, llama_like)(values, {}, options)
        kept = row.kept(len(row.input_ids) - num_cut, "left")
        spec = HeadSpec(kind=task, labels=head_labels(task, options), pad_id=0)
        logits = torch.zeros(1, len(kept) + 3, len(spec.labels))  # filled up to a longer row beside it
        for output, place in likeliest(row, kept):
            logits[0, place, output] = 1.0
        (answered,) = read_answers(logits, [row], [kept], spec)
        return answered.answer

    words = {"tokens": ["Ünal", "saw", "Rome"], "tags": ["B-PER", "O", "B-LOC"]}
    tags = read("ner", words, NER, 4, lambda row, kept: ((1, kept.tolist().index(row.word_starts[2])),))
    assert tags == ["O", "O", "B-LOC"]
    asked = {"question": "Where?", "context": "Rome is, as we know, in Italy, Sir", "answer": "Italy"}
    span = read("qa", asked, TaskOptions(), 7, lambda row, kept: marked(row, kept))
    assert span == "Italy"


def marked(row, kept):
    """(output, place among those that are left) of where the answer begins and ends."""
    labels = [row.labels[place] for place in kept]
    for output, bit in enumerate((START, END)):
        yield output, next(at for at, label in enumerate(labels) if label != IGNORED and label & bit)


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
