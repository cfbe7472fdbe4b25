"""Rows whose input is blank are left out and counted, whatever head and template; and files without rows."""

import json

import pytest
from data_sources import Source, preparation

from megatune.data.labels import with_labels
from megatune.data.questions import read_questions
from megatune.errors import DataError
from megatune.tasks import TaskOptions

LABELS = ("a", "b")
ROWS = [
    {"text": "one", "label": "a"},
    {"text": " \n", "label": "b"},
    {"text": "two", "label": "b", "title": "x"},
]
TEMPLATES = {"own": None, "bare": "{{ text }}", "labelled": "Text: {{ text }}"}


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def ask(path, tokenizer, **how):
    """The rows of `path` as questions of the split `test`."""
    whole = {"split_name": "test", "section": "test", "among": None, "max_rows": None}
    return read_questions([Source([str(path)])], tokenizer=tokenizer, max_prompt_tokens=64, **whole, **how)


@pytest.mark.parametrize("head", ["lm", "classifier"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_blank_row_is_left_out_of_training_and_of_questions(rows_file, tmp_path, gpt2_like, head, template):
    options = TaskOptions(template=template, labels=LABELS)
    same = {"task": "classification", "options": options, "head": head}

    report = preparation([rows_file], gpt2_like, tmp_path / "p", packing=False, **same).prepare().report
    asked = ask(rows_file, gpt2_like, **same)

    assert (report.num_usable, report.num_empty, report.labels) == (2, 1, {"a": 1, "b": 1})
    assert "1 of 3 rows were dropped: they hold nothing to learn, or no input for it" in report.notices(64)
    assert [question.exchange.gold for question in asked.rows] == ["a", "b"]
    assert asked.num_blank == 1


def test_a_template_that_reads_another_column_decides_for_itself(rows_file, tmp_path, gpt2_like):
    options = TaskOptions(template="{{ row.title | default('-') }}", labels=LABELS)
    same = {"task": "classification", "options": options}

    assert preparation([rows_file], gpt2_like, tmp_path / "p", **same).prepare().report.num_empty == 0


def test_rows_that_are_all_blank_are_refused_in_plain_words(tmp_path, gpt2_like):
    path = tmp_path / "blank.jsonl"
    path.write_text(json.dumps({"document": " ", "summary": "s"}) + "\n")
    same = {"task": "summarization", "options": TaskOptions()}

    with pytest.raises(DataError, match=r"data\.train has nothing to train on: of 1 rows 1 hold no text"):
        preparation([path], gpt2_like, tmp_path / "p", **same).prepare()
    with pytest.raises(DataError, match=r"data\.test is empty: 1 rows hold nothing to answer"):
        ask(path, gpt2_like, head="lm", **same)


def test_a_table_with_a_header_alone_is_told_to_be_empty_before_labels_are_looked_for(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n")
    sources = [Source([str(path)])]

    with pytest.raises(DataError, match=r"^data\.train is empty: no row was found in it$"):
        with_labels(TaskOptions(), "classification", sources, split_name="train")

    path.write_text("text,label\none,a\n")
    with pytest.raises(DataError, match=r"data\.train has 1 label \(a\)"):
        with_labels(TaskOptions(), "classification", sources, split_name="train")


def test_rows_without_any_of_several_labels_are_refused_and_one_label_is_enough(tmp_path):
    path = tmp_path / "rows.jsonl"
    sources = [Source([str(path)])]
    options = TaskOptions(multi_label=True)

    path.write_text('{"text": "one", "labels": []}\n')
    with pytest.raises(
        DataError, match=r"data\.train has 0 labels \(none\); a classification needs one or more"
    ):
        with_labels(options, "classification", sources, split_name="train")

    path.write_text('{"text": "one", "labels": ["a"]}\n')
    assert with_labels(options, "classification", sources, split_name="train").labels == ("a",)
