"""The tasks with answers: what is asked, what is learned, how an answer is read, and what is refused."""

from typing import Any

import pytest

from megatune.errors import ConfigError
from megatune.tasks import TASKS, RowError, Segment, TaskOptions
from megatune.tasks.template import check_template

ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "classification": ({"text": "Shares rose.", "label": "earn"}, "Shares rose.\nLabel:", " earn"),
    "ner": (
        {"tokens": ["Ada", "Lovelace", "saw", "Rome"], "tags": ["B-PER", "I-PER", "O", "B-LOC"]},
        "Text: Ada Lovelace saw Rome\nEntities:",
        " Ada Lovelace: PER\nRome: LOC",
    ),
    "qa": ({"question": "2+2?", "answers": ["4", "four"]}, "Question: 2+2?\nAnswer:", " 4"),
    "summarization": ({"document": "Long.", "summary": "Short. "}, "Long.\n\nSummary:", " Short."),
    "translation": ({"source": "dog", "target": "Hund"}, "Text: dog\nTranslation:", " Hund"),
}


def segments(
    task: str, row: dict[str, Any], columns: dict[str, str] | None = None, **options: Any
) -> list[Segment]:
    return TASKS[task].segments(
        row, columns=columns or {}, completion_only=True, render_chat=None, options=TaskOptions(**options)
    )


def exchange(task: str, row: dict[str, Any], **options: Any) -> Any:
    answers = TASKS[task].answers
    assert answers is not None
    return answers.exchange(row, {}, TaskOptions(**options))


def parse(task: str, text: str, row: dict[str, Any], **options: Any) -> Any:
    answers = TASKS[task].answers
    assert answers is not None
    return answers.parse(text, exchange(task, row, **options), TaskOptions(**options))


@pytest.mark.parametrize("task", ROWS)
def test_a_row_is_a_prompt_that_is_read_and_an_answer_that_is_learned(task: str) -> None:
    row, prompt, answer = ROWS[task]

    assert segments(task, row) == [Segment(prompt, is_target=False), Segment(answer, is_target=True)]


@pytest.mark.parametrize("task", ROWS)
def test_the_answer_that_is_learned_is_read_as_the_gold_one(task: str) -> None:
    row, _, answer = ROWS[task]
    gold = exchange(task, row).gold

    found = parse(task, f"{answer}", row)

    assert found == (gold[0] if task == "qa" else gold)


def test_a_model_that_rambles_on_is_read_up_to_the_end_of_its_answer() -> None:
    assert parse("classification", " earn\nLabel: acq", ROWS["classification"][0]) == "earn"
    assert parse("qa", " 4\nQuestion: 3+3?", ROWS["qa"][0]) == "4"
    assert parse("translation", "Hund\nText: cat", ROWS["translation"][0]) == "Hund"
    assert parse("ner", " Rome: LOC\n\nText: x", ROWS["ner"][0]) == ["O", "O", "O", "B-LOC"]


def test_entities_that_are_not_in_the_text_or_of_no_known_type_are_left_out() -> None:
    row = ROWS["ner"][0]

    assert parse("ner", "Oslo: LOC\nRome: PLANET\nAda Lovelace: PER", row, labels=("PER", "LOC")) == [
        "B-PER", "I-PER", "O", "O",
    ]  # fmt: skip


def test_an_entity_that_is_named_twice_is_found_at_both_places_in_order() -> None:
    row = {"tokens": ["Rome", "and", "Rome"], "tags": ["B-LOC", "O", "B-PER"]}

    assert parse("ner", "Rome: LOC\nRome: PER\nRome: LOC", row) == ["B-LOC", "O", "B-PER"]


def test_a_question_that_its_text_does_not_answer_is_learned_as_no_answer() -> None:
    row = {"question": "Who?", "context": "Nobody.", "answers": {"text": [], "answer_start": []}}

    assert segments("qa", row)[1].text == " no answer"
    assert parse("qa", "no answer", row) == ""


def test_several_labels_are_written_in_one_order_and_read_without_unknown_ones() -> None:
    options = {"multi_label": True, "labels": ("art", "war")}
    row = {"text": "t", "labels": ["war", "art", "war"]}

    assert segments("classification", row, **options)[1].text == " art, war"
    assert segments("classification", {"text": "t", "labels": []}, **options)[1].text == " none"
    assert parse("classification", "war, peace,art", row, **options) == ["art", "war"]
    assert parse("classification", "none", row, **options) == []


def test_the_users_template_may_read_every_column_and_sees_the_labels() -> None:
    row = {**ROWS["classification"][0], "title": "News"}
    template = "{{ row.title }}: {{ text }} ({{ labels | join('/') }})"

    assert segments("classification", row, template=template, labels=("acq", "earn"))[0].text == (
        "News: Shares rose. (acq/earn)"
    )


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ row.missing }}", "UndefinedError.*missing"),
        ("{{ text.__class__.__mro__ }}", "SecurityError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ text.nothing() }}", "UndefinedError"),
        ("{% if false %}x{% endif %}", "empty prompt"),
    ],
)
def test_a_template_that_trips_over_a_row_is_an_error_of_that_row(template: str, words: str) -> None:
    with pytest.raises(RowError, match=words):
        segments("classification", ROWS["classification"][0], template=template)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ text", "line 1"),
        ("{% for %}", "line 1"),
        ("{{ txt }} {{ row.a }}", "reads txt.*has labels, text"),
    ],
)
def test_a_template_that_no_row_can_use_is_refused_before_the_rows(template: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_template(template, {"text", "labels"})


@pytest.mark.parametrize(
    ("task", "row", "options", "words"),
    [
        ("classification", {"text": "x", "label": "b"}, {"labels": ("a", "c")}, "'b'.*not among the 2 known"),
        (
            "classification",
            {"text": "x", "label": "A"},
            {"labels": ("a", "c")},
            "'a' differs from it in case alone",
        ),
        ("classification", {"text": "x", "label": 1.5}, {}, "label that is a float"),
        ("classification", {"text": "x", "label": " "}, {}, "empty label"),
        ("classification", {"text": 3, "label": "a"}, {}, "text that is a int"),
        ("classification", {"text": "x", "labels": "a"}, {"multi_label": True}, "must be a list"),
        ("classification", {"text": "x", "labels": ["a,b"]}, {"multi_label": True}, "no comma"),
        ("classification", {"body": "x", "label": "a"}, {}, "lacks a column: found body, label"),
        ("ner", {"tokens": ["a"], "tags": ["I-X"]}, {}, r"breaks.*'I-X' at word 1.*must begin with B-X"),
        ("ner", {"tokens": ["a", "b"], "tags": ["B-X", "I-Y"]}, {}, r"'I-Y' at word 2 \(after 'B-X'\)"),
        ("ner", {"tokens": ["a"], "tags": ["S-X"]}, {}, "knows O and B-TYPE, I-TYPE.*tag_scheme: bioes"),
        ("ner", {"tokens": ["a", "b"], "tags": ["B-X", "O"]}, {"tag_scheme": "bioes"}, "must end with E-X"),
        ("ner", {"tokens": ["a"], "tags": ["B-X"]}, {"tag_scheme": "bioes"}, "must end with E-X"),
        ("ner", {"tokens": ["a"], "tags": [3]}, {}, "tags with 3 in the list"),
        ("ner", {"tokens": ["a"], "tags": []}, {}, "1 tokens and 0 tags"),
        ("ner", {"tokens": ["a b"], "tags": ["O"]}, {}, "'a b'.*one word"),
        ("ner", {"tokens": ["a"], "tags": ["B-Z"]}, {"labels": ("X",)}, "type 'Z'.*not among"),
        ("qa", {"question": "q", "answers": []}, {}, "no answer and no context"),
        ("qa", {"question": "q", "answers": 4}, {}, "answers that are a int"),
        ("translation", {"translation": {"en": "a", "de": "b"}}, {}, "en, de; say which"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_the_reason(
    task: str, row: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RowError, match=words):
        segments(task, row, **options)


def test_pairs_of_languages_are_read_by_the_names_of_the_run_file() -> None:
    row = {"translation": {"en": "dog", "de": "Hund"}}

    found = segments("translation", row, source_lang="de", target_lang="en")

    assert [one.text for one in found] == ["de: Hund\nen:", " dog"]


def test_a_chat_is_written_by_the_template_of_the_model_and_refused_without_one() -> None:
    def render(messages: list[dict[str, str]], ask: bool) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + ("<assistant>" if ask else "")

    found = TASKS["qa"].segments(
        ROWS["qa"][0], columns={}, completion_only=True, render_chat=render, options=TaskOptions(chat=True)
    )

    assert [one.text for one in found] == ["<user>Question: 2+2?\nAnswer:<assistant>", "4"]
    with pytest.raises(RowError, match="no chat template"):
        segments("qa", ROWS["qa"][0], chat=True)
