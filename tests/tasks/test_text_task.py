"""Task `text`: what is read, what is learned, and what is said of rows that cannot be used."""

import pytest

from megatune.tasks import TASKS, MissingColumnsError, RowError, Segment


def text_segments(row, *, columns=None, completion_only=True):
    return TASKS["text"].segments(
        row, columns=columns or {}, completion_only=completion_only, render_chat=None
    )


def test_a_text_is_learned_as_a_whole_even_when_only_completions_are_learned():
    assert text_segments({"text": "Once upon"}) == [Segment("Once upon", is_target=True)]


@pytest.mark.parametrize(("completion_only", "prompt_is_target"), [(True, False), (False, True)])
def test_a_prompt_is_learned_only_when_everything_is(completion_only, prompt_is_target):
    row = {"prompt": "2+2=", "completion": "4"}
    assert text_segments(row, completion_only=completion_only) == [
        Segment("2+2=", is_target=prompt_is_target),
        Segment("4", is_target=True),
    ]


def test_the_users_own_column_names_are_mapped():
    row = {"question": "2+2=", "answer": "4", "id": 7}
    mapped = text_segments(row, columns={"prompt": "question", "completion": "answer"})
    assert [segment.text for segment in mapped] == ["2+2=", "4"]


def test_mapped_columns_win_over_a_text_column_of_the_same_row():
    row = {"text": "the whole", "question": "q", "completion": "a"}
    assert [s.text for s in text_segments(row, columns={"prompt": "question"})] == ["q", "a"]


def test_a_null_counts_as_absent_so_files_may_mix_forms():
    row = {"text": None, "prompt": "q", "completion": "a"}
    assert [segment.text for segment in text_segments(row)] == ["q", "a"]


@pytest.mark.parametrize("row", [{"text": " \n"}, {"prompt": "q", "completion": ""}])
def test_a_row_without_anything_to_learn_gives_no_segments(row):
    assert text_segments(row) == []


def test_a_missing_column_names_what_was_found_and_what_is_accepted():
    with pytest.raises(MissingColumnsError) as caught:
        text_segments({"body": "x", "title": "y", "text": None}, columns={"prompt": "question"})
    message = str(caught.value)
    assert "found body, title; without a value: text;" in message
    assert "accepted: text or prompt (your column 'question') + completion" in message


def test_messages_in_a_text_task_point_to_the_dialogue_task():
    with pytest.raises(RowError, match=r"data\.task: dialogue"):
        text_segments({"messages": [{"role": "user", "content": "hi"}]})


def test_a_number_in_place_of_text_is_named():
    with pytest.raises(RowError, match=r"completion that is a int \(4\); it must be text"):
        text_segments({"prompt": "2+2=", "completion": 4})
