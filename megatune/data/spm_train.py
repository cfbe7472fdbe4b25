"""Train a SentencePiece model on the texts of the rows."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import sentencepiece

from megatune.errors import DataError

MAX_SENTENCE_BYTES = 4000
"""Longer ones are divided: SentencePiece would leave them out without a word."""
MAX_SENTENCES = 2_000_000
"""Drawn from all when there are more: about a gigabyte of memory while the model is trained."""


@dataclass(frozen=True, kw_only=True)
class SpmSettings:
    """What decides, beside the texts, which pieces come out."""

    vocab_size: int
    model_type: Literal["unigram", "bpe"] = "unigram"
    character_coverage: float = 0.9995
    byte_fallback: bool = True
    """Characters without a piece of their own become bytes, so that nothing is unknown."""
    special_tokens: tuple[str, ...] = ()
    """Pieces that are never divided, and that stand for themselves."""


def train_sentencepiece(texts: Iterable[str], settings: SpmSettings) -> bytes:
    """The model that SentencePiece makes of `texts`, in one pass over them; equal texts make equal models.

    Text comes back from it as it went in: nothing is normalised, blanks are kept. Raises DataError when
    there is too little text for so many pieces, or none.
    """
    written = io.BytesIO()
    sentences = _Counted(_sentences(texts))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=written,
            vocab_size=settings.vocab_size,
            model_type=settings.model_type,
            character_coverage=settings.character_coverage,
            byte_fallback=settings.byte_fallback,
            control_symbols=list(settings.special_tokens),
            input_sentence_size=MAX_SENTENCES,
            max_sentence_length=MAX_SENTENCE_BYTES + 4,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            num_threads=1,  # with more the pieces depend on which thread is first
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise DataError(_refusal(str(error), sentences.count, settings)) from None
    return written.getvalue()


def _refusal(error: str, num_sentences: int, settings: SpmSettings) -> str:
    if not num_sentences:
        return "no tokenizer can be trained: data.train holds no text"
    reason = error.strip().splitlines()[-1].rpartition("] ")[2]
    return (
        f"SentencePiece cannot make {settings.vocab_size} pieces of {num_sentences} lines of text: {reason} Set "
        "tokenizer.vocab_size to what it says, or give more text"
    )


class _Counted:
    """An iterator that counts what it gave."""

    def __init__(self, items: Iterator[str]) -> None:
        self._items = items
        self.count = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        item = next(self._items)
        self.count += 1
        return item


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines, none of them too long. A newline itself becomes a byte."""
    for text in texts:
        for line in text.replace("\0", " ").split("\n"):
            yield from _divided(line)


def _divided(line: str) -> Iterator[str]:
    step = MAX_SENTENCE_BYTES // 4  # a character has four bytes at most
    if len(line.encode(errors="replace")) <= MAX_SENTENCE_BYTES:
        step = max(1, len(line))
    for start in range(0, len(line), step):
        yield line[start : start + step]
