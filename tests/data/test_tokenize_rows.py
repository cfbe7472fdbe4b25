"""Which tokens a row becomes and on which of them a loss is taken."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_level, fast

from megatune.data.tokenize import Limit, chat_renderer, end_id, padding_id, tokenize
from megatune.errors import DataError
from megatune.tasks import TASKS, RowError, Segment

ASKED, ANSWERED = Segment("The capital of France is", False), Segment(" Paris.", True)


def one(segments, tokenizer, max_length=1000):
    return tokenize([segments], tokenizer, Limit(max_length=max_length))[0]


def learned(example, tokenizer):
    return tokenizer.decode(example.input_ids[example.is_target].tolist())


def dialogue(messages, tokenizer):
    render = chat_renderer(tokenizer)
    row = {"messages": messages}
    return TASKS["dialogue"].segments(row, columns={}, completion_only=True, render_chat=render)


def test_the_text_is_tokenised_as_a_whole_and_the_completion_with_its_end_is_learned(gpt2_like):
    example = one([ASKED, ANSWERED], gpt2_like)
    whole = gpt2_like("The capital of France is Paris.").input_ids
    assert example.input_ids.tolist() == [*whole, gpt2_like.eos_token_id]
    assert learned(example, gpt2_like) == " Paris.<|im_end|>"


def test_a_token_over_the_border_is_learned_with_the_completion(gpt2_like):
    example = one([Segment("The capital of France is ", False), Segment("Paris.", True)], gpt2_like)
    assert learned(example, gpt2_like) == " Paris.<|im_end|>"


def test_the_end_token_is_learned_though_it_is_also_the_padding_token(gpt2_like):
    assert gpt2_like.pad_token_id == gpt2_like.eos_token_id
    assert one([Segment("2 + 2 = 4", True)], gpt2_like).is_target[-1]


def test_bos_is_added_as_the_tokenizer_does_and_never_learned(llama_like):
    example = one([Segment("Paris.", True)], llama_like)
    assert example.input_ids.tolist() == [*llama_like("Paris.").input_ids, llama_like.eos_token_id]
    assert example.input_ids[0] == llama_like.bos_token_id
    assert learned(example, llama_like) == "Paris.<|im_end|>"


def test_without_bos_nothing_predicts_the_first_token(gpt2_like):
    example = one([Segment("2 + 2 = 4", True)], gpt2_like)
    assert not example.is_target[0]
    assert example.is_target[1:].all()


def test_an_end_token_that_is_there_already_is_not_doubled(gpt2_like):
    example = one([Segment("Paris.<|im_end|>", True)], gpt2_like)
    assert example.input_ids.tolist() == one([Segment("Paris.", True)], gpt2_like).input_ids.tolist()


def test_a_conversation_gets_exactly_the_tokens_of_the_chat_template(gpt2_like):
    messages = [
        {"role": "user", "content": "2 + 2"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "is a user"},
        {"role": "assistant", "content": "The capital"},
    ]
    example = one(dialogue(messages, gpt2_like), gpt2_like)
    assert example.input_ids.tolist() == gpt2_like.apply_chat_template(messages, tokenize=True).input_ids
    assert learned(example, gpt2_like) == "4<|im_end|>\nThe capital<|im_end|>\n"


def test_a_chat_template_writes_its_own_bos(llama_like):
    example = one([Segment("<s>user: hi", False, True), Segment(" ho<|im_end|>", True, True)], llama_like)
    assert example.input_ids.tolist().count(llama_like.bos_token_id) == 1
    assert example.input_ids.tolist().count(llama_like.eos_token_id) == 1


def test_a_row_that_is_too_long_is_cut_at_the_right_and_the_cut_is_counted(gpt2_like):
    full = one([ASKED, ANSWERED], gpt2_like).input_ids
    found = tokenize([[ASKED, ANSWERED]], gpt2_like, Limit(max_length=4))
    assert found.input_ids.tolist() == full[:4].tolist()
    assert found.num_cut.tolist() == [len(full) - 4]


def test_rows_keep_their_order_whether_plain_templated_or_empty(gpt2_like):
    templated = dialogue([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], gpt2_like)
    found = tokenize([[ASKED, ANSWERED], templated, [], [ANSWERED]], gpt2_like, Limit(max_length=1000))
    texts = [gpt2_like.decode(found[at].input_ids.tolist()) for at in range(len(found))]
    assert found.rows.tolist() == [0, 1, 3]
    assert texts == [
        "The capital of France is Paris.<|im_end|>",
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n",
        " Paris.<|im_end|>",
    ]


def test_a_slow_tokenizer_gives_the_same_mask(slow):
    example = one([ASKED, ANSWERED], slow)
    assert example.input_ids[0] == slow.bos_token_id
    assert example.input_ids[-1] == slow.eos_token_id
    assert example.is_target.tolist() == [False] * (1 + len(ASKED.text)) + [True] * (len(ANSWERED.text) + 1)


BYTES = {trim: fast(byte_level(259, trim_offsets=trim)) for trim in (True, False)}
"""Without merges no token crosses a border, so the mask must be exact to the byte."""


@pytest.mark.parametrize("trim_offsets", [True, False])
@settings(deadline=None)  # the machine may be busy
@given(pieces=st.lists(st.tuples(st.text(max_size=6), st.booleans()), min_size=1, max_size=5))
def test_exactly_the_bytes_of_the_targets_are_learned_for_any_text(trim_offsets, pieces):
    tokenizer = BYTES[trim_offsets]
    segments = [Segment("x", False), *(Segment(text, target) for text, target in pieces)]
    example = one(segments, tokenizer)
    expected = "".join(segment.text for segment in segments if segment.is_target)
    num_bytes = len(expected.encode()) + (1 if segments[-1].is_target else 0)
    assert int(example.is_target.sum()) == num_bytes
    assert learned(example, tokenizer).removesuffix("<|im_end|>") == expected


def test_a_conversation_that_the_template_refuses_is_a_row_error():
    tokenizer = fast(byte_level(300))
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RowError, match=r"refused by the chat template.*roles must alternate"):
        dialogue([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenizer)


def test_a_tokenizer_without_a_template_has_no_renderer(llama_like):
    assert chat_renderer(llama_like) is None


def test_a_tokenizer_without_an_end_token_is_refused_with_the_fix():
    with pytest.raises(DataError, match=r"no end-of-sequence token.*Set eos_token"):
        end_id(fast(byte_level(300), eos_token=None))


def test_the_end_token_fills_rows_up_where_there_is_no_padding_token():
    tokenizer = fast(byte_level(300), pad_token=None)
    assert padding_id(tokenizer) == tokenizer.eos_token_id
