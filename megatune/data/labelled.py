"""Rows for a classifier head: tokens with a label each, aligned with the words of the user.

The label of a token is -100 where nothing is learned. Of a classification the last token of a text has
its class, as a number or, with several labels, as bits. Of ner the first token of each word has the tag of
the word. Of spans every token of the context has 0, plus 1 where an answer begins and 2 where it ends.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from megatune.data.examples import Counts, Example, Ids, Mask
from megatune.data.tokenize import Side
from megatune.errors import DataError
from megatune.tasks import TASKS, Exchange, RowError, TaskOptions
from megatune.tasks.labels import END, IGNORED, START
from megatune.tasks.qa import read_question
from megatune.tasks.tags import tag_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_LABELS = 31
"""Bits of a label with several classes."""
TEMPLATES = {"classification": "{{ text }}", "ner": "{{ tokens | join(' ') }}"}


@dataclass(frozen=True, kw_only=True)
class LabelledRow:
    """The tokens of one row, and where each lies in its text."""

    exchange: Exchange
    """Its prompt is the text that the head reads."""
    input_ids: list[int]
    labels: list[int]
    offsets: list[tuple[int, int]]
    """(start, stop) of each token in the text."""
    word_starts: list[int]
    """The first token of each word, of ner."""
    num_front: int
    """Tokens at the beginning that stay where the left is cut: BOS, and the question that a span answers."""

    def num_beyond(self, max_length: int) -> int:
        """Tokens that an example of `max_length` leaves out."""
        return max(0, len(self.input_ids) - max_length)

    def kept(self, max_length: int, side: Side) -> Counts:
        """The places of the at most `max_length` tokens that are left when a longer row is cut at `side`."""
        length = len(self.input_ids)
        if side == "right" or length <= max_length:
            return np.arange(min(length, max_length))
        num_front = min(self.num_front, max_length)
        return np.concatenate((np.arange(num_front), np.arange(length - max_length + num_front, length)))

    def example(self, max_length: int, side: Side = "right") -> Example:
        """The row cut to `max_length` tokens.

        A text keeps its class; words that are cut off have no tag, and an answer that is not all there no loss.
        """
        kept = self.kept(max_length, side)
        ids, labels = (np.array(part, dtype=np.int32)[kept] for part in (self.input_ids, self.labels))
        if self._is_text and max_length and self.num_beyond(max_length):
            labels[-1] = self.labels[-1]
        return Example(ids, self._losses(labels), labels)

    @property
    def _is_text(self) -> bool:
        return all(label == IGNORED for label in self.labels[:-1]) and not self.word_starts

    def _losses(self, labels: Ids) -> Mask:
        """One of a text, one a word, one of a span."""
        learned = labels != IGNORED
        if self.word_starts or self._is_text:
            return np.asarray(learned, dtype=np.bool_)
        whole = all((labels[learned] & bit).any() for bit in (START, END))
        return np.asarray(learned & (np.cumsum(learned) == 1) & whole, dtype=np.bool_)


Labeller = Callable[[Mapping[str, object], Mapping[str, str], TaskOptions], LabelledRow]


def labeller(task: str, tokenizer: "PreTrainedTokenizerBase") -> Labeller:
    """What makes rows of `task` into tokens with labels. Raises DataError for a tokenizer without offsets."""
    if not tokenizer.is_fast:
        raise DataError(
            f"model.head is classifier, but {type(tokenizer).__name__} is a slow tokenizer, which does not say "
            "where its tokens lie in a text. Use a model with a tokenizer.json, or model.head=lm"
        )
    makers: dict[str, Callable[..., LabelledRow]] = {
        "classification": _classified,
        "ner": _tagged,
        "qa": _with_span,
    }
    make = makers[task]

    def label(row: Mapping[str, object], columns: Mapping[str, str], options: TaskOptions) -> LabelledRow:
        return make(row, columns, options, tokenizer)

    return label


def head_labels(task: str, options: TaskOptions) -> tuple[str, ...]:
    """What the outputs of the head are called, in order. Raises DataError for more than there is room for."""
    if options.multi_label and len(options.labels) > MOST_LABELS:
        raise DataError(
            f"{len(options.labels)} labels; a classifier head with data.multi_label has room for {MOST_LABELS}. Use "
            "model.head=lm"
        )
    if task == "ner":
        return tag_names(options.labels, options.tag_scheme)
    return ("start", "end") if task == "qa" else options.labels


def _classified(
    row: Mapping[str, object],
    columns: Mapping[str, str],
    options: TaskOptions,
    tokenizer: "PreTrainedTokenizerBase",
) -> LabelledRow:
    exchange = _exchange("classification", row, columns, options)
    ids, _ = _encode(exchange.prompt, tokenizer)
    places = {label: index for index, label in enumerate(options.labels)}
    gold = [exchange.gold] if isinstance(exchange.gold, str) else exchange.gold
    numbers = [places[label] for label in gold]
    label = sum(1 << number for number in numbers) if options.multi_label else numbers[0]
    return LabelledRow(
        exchange=exchange,
        input_ids=ids,
        labels=[IGNORED] * (len(ids) - 1) + [label],
        offsets=[],
        word_starts=[],
        num_front=_num_bos(ids, tokenizer),
    )


def _tagged(
    row: Mapping[str, object],
    columns: Mapping[str, str],
    options: TaskOptions,
    tokenizer: "PreTrainedTokenizerBase",
) -> LabelledRow:
    exchange = _exchange("ner", row, columns, options)
    words = [str(word) for word in exchange.values["tokens"]]  # type: ignore[attr-defined]
    text = " ".join(words)
    ids, offsets = _encode(text, tokenizer)
    word_starts = _first_tokens(words, offsets)
    places = {tag: index for index, tag in enumerate(head_labels("ner", options))}
    labels = [IGNORED] * len(ids)
    for at, tag in zip(word_starts, exchange.gold, strict=True):
        labels[at] = places[tag]
    return LabelledRow(
        exchange=replace(exchange, prompt=text),
        input_ids=ids,
        labels=labels,
        offsets=offsets,
        word_starts=word_starts,
        num_front=_num_bos(ids, tokenizer),
    )


def _with_span(
    row: Mapping[str, object],
    columns: Mapping[str, str],
    options: TaskOptions,
    tokenizer: "PreTrainedTokenizerBase",
) -> LabelledRow:
    del options
    values, answers = read_question(row, columns)
    question, context = str(values["question"]), values["context"]
    if not isinstance(context, str):
        raise RowError("has no context; a span head finds answers in one (model.head=lm needs none)")
    begin = next(((context.find(one), one) for one in answers if one in context), None)
    if begin is None:
        raise RowError("has no answer that stands in its context word for word, which a span head needs")
    text = f"{question}\n{context}"
    ids, offsets = _encode(text, tokenizer)
    start = len(question) + 1 + begin[0]
    stop = start + len(begin[1])
    inside = [at for at, (_, end) in enumerate(offsets) if end > len(question) + 1]
    covered = [at for at in inside if offsets[at][0] < stop and offsets[at][1] > start]
    labels = [IGNORED] * len(ids)
    for at in inside:
        labels[at] = 0
    labels[covered[0]] += START
    labels[covered[-1]] += END
    exchange = Exchange(prompt=text, answer=begin[1], gold=answers, values=values)
    return LabelledRow(
        exchange=exchange,
        input_ids=ids,
        labels=labels,
        offsets=offsets,
        word_starts=[],
        num_front=inside[0],
    )


def _exchange(
    task: str, row: Mapping[str, object], columns: Mapping[str, str], options: TaskOptions
) -> Exchange:
    answers = TASKS[task].answers
    assert answers is not None, "tasks with a head have answers"
    template = options.template or TEMPLATES[task]
    return answers.exchange(row, columns, replace(options, template=template))


def _encode(text: str, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and their places in `text`; of tokens around the text (0, 0). Raises RowError for no token."""
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]
    while len(ids) > 1 and ids[-1] in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        ids, offsets = ids[:-1], offsets[:-1]  # a text's class is read at its last token of its own
    if not ids:
        raise RowError("has a text without any token")
    return ids, offsets


def _num_bos(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> int:
    return int(ids[0] == tokenizer.bos_token_id)


def _first_tokens(words: list[str], offsets: list[tuple[int, int]]) -> list[int]:
    """The first token of each word, by the token's last character (see `tokenize._targets`)."""
    stops = np.cumsum([len(word) + 1 for word in words])  # with the blank behind the word
    found: dict[int, int] = {}
    for at, (start, stop) in enumerate(offsets):
        if stop > start:
            found.setdefault(int(np.searchsorted(stops, stop - 1, side="right")), at)
    lost = [word for number, word in enumerate(words) if number not in found]
    if lost:
        raise RowError(f"has the word {lost[0]!r}, which this tokenizer gives no token of its own")
    return [found[number] for number in range(len(words))]
