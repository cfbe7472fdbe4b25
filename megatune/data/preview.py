"""Show what a model will read and learn, token by token, before any time is spent on it."""

from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from megatune.data.examples import Example
from megatune.data.prepared import PreparedSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEARNED = "bold green"
_VISIBLE = str.maketrans({"\n": "\\n", "\t": "\\t", "\r": "\\r"})


def preview(prepared: PreparedSet, tokenizer: "PreTrainedTokenizerBase", num_rows: int) -> Group:
    """The first `num_rows` rows, for rich to print; a token that a loss is taken on stands in [brackets].

    A model that never stops was seldom shown its end token: look for it, in brackets.
    """
    lines = [Text("[ ] marks the tokens that are learned; the others are only read.")]
    for number in range(min(num_rows, prepared.num_rows)):
        documents = prepared.row(number)
        lines.append(Text(_row_title(number, documents, prepared), style="bold"))
        lines += [_marked(document, tokenizer) for document in documents]
    return Group(*lines)


def _row_title(number: int, documents: list[Example], prepared: PreparedSet) -> str:
    num_tokens = sum(len(document.input_ids) for document in documents)
    num_targets = sum(int(document.is_target.sum()) for document in documents)
    return (
        f"row {number}: {len(documents)} document{'s' if len(documents) > 1 else ''}, "
        f"{num_tokens} of {prepared.max_seq_length} tokens, {num_targets} learned"
    )


def _marked(document: Example, tokenizer: "PreTrainedTokenizerBase") -> Text:
    found = Text()
    for token, is_target in zip(document.input_ids.tolist(), document.is_target.tolist(), strict=True):
        shown = _shown(token, tokenizer)
        found.append(f"[{shown}]" if is_target else shown, style=_LEARNED if is_target else "dim")
    return found


def _shown(token: int, tokenizer: "PreTrainedTokenizerBase") -> str:
    """A token as text; one that is only a part of a character as the vocabulary writes it."""
    text = str(tokenizer.decode([token]))
    if "\N{REPLACEMENT CHARACTER}" in text:
        text = str(tokenizer.convert_ids_to_tokens([token])[0])
    return text.translate(_VISIBLE)
