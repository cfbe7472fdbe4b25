"""What of a row a tokenizer is trained on."""

import pytest

from megatune.data.texts import texts_of

ANSWERS = {"text": ["Rome", "the city"], "answer_start": [3, 9]}


@pytest.mark.parametrize(
    ("task", "values", "columns", "texts"),
    [
        ("text", {"text": "one", "other": "no"}, {}, ["one"]),
        ("text", {"body": "one"}, {"text": "body"}, ["one"]),
        ("dialogue", {"messages": [{"role": "user", "content": "hi"}]}, {}, ["hi"]),
        ("translation", {"translation": {"en": "a dog", "de": "ein Hund"}}, {}, ["a dog", "ein Hund"]),
        (
            "qa",
            {"question": "Where?", "context": "In Rome.", "answer": "Rome"},
            {},
            ["Rome", "In Rome.", "Where?"],
        ),
        ("qa", {"question": "Where?", "answers": ANSWERS}, {}, ["Rome", "the city", "Where?"]),
        ("qa", {"question": "Where?", "text": "In Rome."}, {"context": "text"}, ["Where?", "In Rome."]),
        ("summarization", {"document": "long", "summary": None}, {}, ["long"]),
    ],
)
def test_every_text_that_a_task_reads_is_given_once(task, values, columns, texts):
    assert sorted(texts_of(values, task, columns)) == sorted(texts)
