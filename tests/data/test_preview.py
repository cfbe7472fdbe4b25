"""The preview shows each token of a row, the learned ones in brackets, also without colour."""

import io
import json

import pytest
from data_sources import preparation
from rich.console import Console
from rich.text import Text
from tiny_tokenizers import byte_level, fast

from megatune.data.preview import preview


@pytest.fixture
def prepared_from(tmp_path):
    def run(rows, tokenizer, task="text"):
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        file = tmp_path / "train.jsonl"
        return preparation([file], tokenizer, tmp_path / "prepared", task=task, packing=False).prepare()

    return run


def preview_text(prepared, tokenizer, num_rows):
    """What is shown as plain text, one line for each document."""
    lines = preview(prepared, tokenizer, num_rows).renderables
    return "\n".join(line.plain for line in lines if isinstance(line, Text))


def test_the_end_of_a_turn_is_seen_to_be_learned(prepared_from, gpt2_like):
    exchange = {"prompt": "user", "completion": "Paris"}
    prepared = prepared_from([exchange], gpt2_like, task="dialogue")
    line = preview_text(prepared, gpt2_like, 1).splitlines()[-1]
    assert line.startswith("<|im_start|>user\\nuser<|im_end|>\\n<|im_start|>assistant\\n[")
    assert line.endswith("][<|im_end|>][\\n]")
    assert line.replace("[", "").replace("]", "").endswith("assistant\\nParis<|im_end|>\\n")


def test_each_row_tells_its_documents_tokens_and_losses(prepared_from, gpt2_like):
    prepared = prepared_from([{"text": "Paris"}, {"text": "2 + 2 = 4"}], gpt2_like)
    shown = preview_text(prepared, gpt2_like, 5).splitlines()
    num_tokens = len(gpt2_like("2 + 2 = 4").input_ids) + 1
    assert shown[3] == f"row 1: 1 document, {num_tokens} of 64 tokens, {num_tokens - 1} learned"
    assert len(shown) == 5


def test_no_more_rows_are_shown_than_asked_for(prepared_from, gpt2_like):
    prepared = prepared_from([{"text": "Paris"}] * 9, gpt2_like)
    assert preview_text(prepared, gpt2_like, 2).count("row ") == 2


def test_a_token_that_is_part_of_a_character_is_shown_as_the_vocabulary_writes_it(prepared_from):
    letters = fast(byte_level(259))
    assert preview_text(prepared_from([{"text": "xé"}], letters), letters, 1).endswith("x[Ã][©][<|im_end|>]")


def test_rich_prints_text_that_looks_like_its_markup_as_it_is(prepared_from, gpt2_like):
    prepared = prepared_from([{"prompt": "[bold]", "completion": "a"}], gpt2_like)
    console = Console(width=200, no_color=True, force_terminal=False, record=True, file=io.StringIO())
    console.print(preview(prepared, gpt2_like, 1))
    assert "[bold][a][<|im_end|>]" in console.export_text()
