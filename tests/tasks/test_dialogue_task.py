"""Task `dialogue`: the mask is exact whatever the chat template writes around a turn."""

import pytest

from megatune.errors import DataError
from megatune.tasks import TASKS, RowError, Segment
from megatune.tasks.chat import read_messages

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def appending(messages, add_generation_prompt):
    """A template as most are: each turn is added to the end, opened by its role."""
    turns = "".join(f"<{m['role']}>{m['content']}<end>\n" for m in messages)
    return "<bos>" + turns + ("<assistant>" if add_generation_prompt else "")


def rewriting(messages, add_generation_prompt):
    """A template that writes an earlier answer differently once another turn follows (as Qwen3's does)."""
    last = len(messages) - 1
    turns = "".join(
        f"<{m['role']}>{'<think>' if m['role'] == 'assistant' and i == last else ''}{m['content']}<end>"
        for i, m in enumerate(messages)
    )
    return turns + ("<assistant>" if add_generation_prompt else "")


def dialogue_segments(row, *, completion_only=True, render_chat=appending):
    return TASKS["dialogue"].segments(
        row, columns={}, completion_only=completion_only, render_chat=render_chat
    )


def templated(text, *, is_target):
    return Segment(text, is_target=is_target, templated=True)


def test_every_answer_and_its_end_of_turn_are_learned_and_nothing_else():
    again = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    assert dialogue_segments({"messages": [USER, ANSWER, *again]}) == [
        templated("<bos><user>Hi<end>\n<assistant>", is_target=False),
        templated("Hello<end>\n", is_target=True),
        templated("<user>Hello<end>\n<assistant>", is_target=False),
        templated("Hi<end>\n", is_target=True),
    ]


def test_the_pieces_put_together_are_what_the_template_writes():
    messages = [{"role": "system", "content": "Be kind"}, USER, ANSWER, USER, ANSWER]
    pieces = dialogue_segments({"messages": messages})
    assert "".join(piece.text for piece in pieces) == appending(messages, False)


def test_turns_after_the_last_answer_are_left_out():
    with_rest = dialogue_segments({"messages": [USER, ANSWER, USER]})
    assert with_rest == dialogue_segments({"messages": [USER, ANSWER]})


def test_everything_is_learned_when_not_only_completions_are():
    assert dialogue_segments({"messages": [USER, ANSWER]}, completion_only=False) == [
        templated(appending([USER, ANSWER], False), is_target=True)
    ]


def test_prompt_and_completion_become_one_exchange():
    row = {"prompt": "Hi", "completion": "Hello"}
    assert dialogue_segments(row) == dialogue_segments({"messages": [USER, ANSWER]})


def test_prompt_and_completion_stay_plain_text_without_a_template():
    row = {"prompt": "Hi", "completion": "Hello"}
    assert dialogue_segments(row, render_chat=None) == [Segment("Hi", False), Segment("Hello", True)]


def test_messages_without_a_template_are_refused_with_the_fix():
    with pytest.raises(RowError, match=r"no chat template.*model\.tokenizer"):
        dialogue_segments({"messages": [USER, ANSWER]}, render_chat=None)


def test_a_template_that_rewrites_earlier_turns_is_refused():
    with pytest.raises(DataError, match=r"once message 3 is there.*one exchange a row"):
        dialogue_segments({"messages": [USER, ANSWER, USER, ANSWER]}, render_chat=rewriting)


def test_the_same_template_is_used_for_single_exchanges_where_it_only_appends():
    pieces = dialogue_segments({"messages": [USER, ANSWER]}, render_chat=rewriting)
    assert pieces[-1] == templated("<think>Hello<end>", is_target=True)


def test_an_empty_answer_in_between_is_not_learned():
    empty = {"role": "assistant", "content": " "}
    pieces = dialogue_segments({"messages": [USER, empty, USER, ANSWER]})
    assert [piece.is_target for piece in pieces] == [False, False, False, True]


@pytest.mark.parametrize("messages", [[USER], [USER, {"role": "assistant", "content": ""}]])
def test_a_conversation_without_an_answer_gives_no_segments(messages):
    assert dialogue_segments({"messages": messages}) == []


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([ANSWER, USER], "begins with an assistant message"),
        ([USER, {"from": "gpt", "value": "Hello"}], r"message 2 .*found: from, value"),
        ([USER, {"role": "assistant", "content": ["Hello"]}], "message 2 whose role or content is not text"),
        ([{"role": "usr", "content": "Hi"}, ANSWER], "message 1 with the role 'usr'. Did you mean 'user'"),
        (
            [USER, {"role": "Assistant", "content": "Hello"}],
            "message 2 with the role 'Assistant'. Did you mean",
        ),
        ([USER, {"role": "gpt", "content": "Hello"}], "the role 'gpt'. Did you mean 'assistant'"),
        ("Hi", "not a list of"),
        ([], "at least one message"),
    ],
)
def test_messages_of_another_shape_are_named(messages, problem):
    with pytest.raises(RowError, match=problem):
        dialogue_segments({"messages": messages})


def test_a_template_may_know_roles_of_its_own():
    read = read_messages([{"role": "documents", "content": "Facts"}, USER, ANSWER])
    assert [message["role"] for message in read] == ["documents", "user", "assistant"]
