"""Labels as tokens: told apart even where one begins another, refused where nothing ends them."""

import pytest
from tiny_tokenizers import CHAT_TEMPLATE, byte_level, fast

from megatune.data.choices import label_tokens
from megatune.errors import DataError
from megatune.evaluate.choices import branches
from megatune.tasks import TaskOptions


@pytest.fixture(scope="module")
def tokenizer():
    return fast(byte_level(259))  # no merges: a token a character


def test_a_label_that_begins_another_one_ends_with_a_token_of_its_own(tokenizer):
    short, long = label_tokens(TaskOptions(labels=("earn", "earnings")), "Topic:", tokenizer)

    assert short[-1] == long[-1] == tokenizer.eos_token_id
    assert short[:-1] == long[: len(short) - 1]
    assert branches([short, long]) == {tuple(short[:-1]): sorted([short[-1], long[len(short) - 1]])}


def test_labels_begin_with_the_blank_that_training_puts_before_them(tokenizer):
    (blank, *_), _ = label_tokens(TaskOptions(labels=("a", "b")), "Topic:", tokenizer)
    (first, *_), _ = label_tokens(TaskOptions(labels=("a", "b")), "Topic:\n", tokenizer)

    assert tokenizer.decode([blank]) == " "
    assert tokenizer.decode([first]) == "a"


def test_a_chat_template_that_ends_no_turn_cannot_tell_such_labels_apart():
    chat = fast(byte_level(259))
    chat.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"

    with pytest.raises(DataError, match="'earn' is the beginning of 'earnings'"):
        label_tokens(TaskOptions(labels=("earn", "earnings"), chat=True), "Topic:", chat)

    chat.chat_template = CHAT_TEMPLATE
    short, long = label_tokens(TaskOptions(labels=("earn", "earnings"), chat=True), "Topic:", chat)
    assert short != long[: len(short)]
