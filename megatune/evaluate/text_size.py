"""How many words and bytes the targets of a split are: perplexities per token depend on the tokenizer."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatune.data.prepared import PreparedSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PERPLEXITIES = frozenset({"perplexity", "word_perplexity", "byte_perplexity"})


@dataclass(frozen=True)
class TextSize:
    """Of the text that losses are taken on; special tokens are no text."""

    num_words: int
    """Parts between blanks, as `wc -w` counts them."""
    num_bytes: int
    """In UTF-8."""

    def perplexities(self, loss_sum: float) -> dict[str, float]:
        """Of a word and of a byte. `loss_sum`: over all target tokens, in nats."""
        sizes = {"word_perplexity": self.num_words, "byte_perplexity": self.num_bytes}
        return {name: exp(loss_sum / size) for name, size in sizes.items() if size}


def exp(nats: float) -> float:
    """e to the power of `nats`; infinite where that overflows."""
    return math.exp(nats) if nats < 700 else math.inf


def text_size(targets: Iterable[list[int]], tokenizer: "PreTrainedTokenizerBase") -> TextSize:
    """Of the targets of some rows, each as token ids."""
    num_words = num_bytes = 0
    for ids in targets:
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        num_words += len(str(text).split())
        num_bytes += len(str(text).encode())
    return TextSize(num_words, num_bytes)


def targets_of(prepared: PreparedSet, *, max_rows: int | None = None) -> Iterator[list[int]]:
    """Of the rows that `held_out_loss` takes with the same `max_rows`."""
    num_rows = prepared.num_rows if max_rows is None else min(max_rows, prepared.num_rows)
    for number in range(num_rows):
        for document in prepared.row(number):
            yield document.input_ids[document.is_target].tolist()
