"""Rows of a split as questions for a model: the tokens of each prompt, and what answers are compared with."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from megatune.data.each_row import Columns, each_row
from megatune.data.labelled import LabelledRow, labeller
from megatune.data.prepared import PreparedSet
from megatune.data.read import Source
from megatune.data.rows import Row
from megatune.data.segmenting import Segmenting, exchange_hash
from megatune.data.tokenize import chat_renderer, end_id, padding_id
from megatune.errors import DataError
from megatune.tasks import TASKS, Exchange, RenderChat, RowError, Segment, TaskOptions, question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row that a model is to answer."""

    where: str
    """The row's place, for people."""
    prompt_ids: list[int]
    exchange: Exchange
    labelled: LabelledRow | None = None
    """What a classifier head reads in place of the prompt."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """All rows of one split that are scored, in their order."""

    split: str
    rows: list[Question]
    num_cut: int
    """Prompts that lost their beginning, because the answer must have room."""
    num_blank: int
    """Rows that are not asked, because they hold nothing to answer."""
    stop_ids: list[int]
    """Tokens that end an answer."""
    pad_id: int
    max_prompt_tokens: int


def read_questions(
    sources: Sequence[Source],
    *,
    split_name: str,
    task: str,
    options: TaskOptions,
    tokenizer: "PreTrainedTokenizerBase",
    max_prompt_tokens: int,
    max_rows: int | None,
    head: str,
    section: str,
    among: PreparedSet | None,
) -> Questions:
    """The rows of `sources` as questions, the first `max_rows` of them.

    A prompt longer than `max_prompt_tokens` keeps its end, where a template asks; the rows of a `head` classifier
    are cut where they are read. section: where `sources` stand in the run file, whose name is their default
    split: `split_name`, or the split that it was taken out of; among: only rows that this set was made of. Raises
    DataError for a row that cannot be used.
    """
    read = _Reader(task, section, options, tokenizer, head, among)
    found: list[Question] = []
    with tempfile.TemporaryDirectory(prefix="megatune-questions-") as scratch:
        rows = each_row(sources, split_name=section, scratch=Path(scratch))
        found = list(islice((one for row, columns in rows if (one := read(row, columns))), max_rows))
    if not found:
        blank = (
            f"{read.num_blank} rows hold nothing to answer" if read.num_blank else "no row was found in it"
        )
        raise DataError(f"data.{split_name} is empty: {blank}")
    return Questions(
        split=split_name,
        rows=[replace(one, prompt_ids=one.prompt_ids[-max_prompt_tokens:]) for one in found],
        num_blank=read.num_blank,
        num_cut=sum(len(one.prompt_ids) > max_prompt_tokens for one in found),
        stop_ids=stop_ids(tokenizer),
        pad_id=padding_id(tokenizer),
        max_prompt_tokens=max_prompt_tokens,
    )


def prompt_ids(segment: Segment, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens of a prompt as training has them before an answer: BOS where the tokenizer adds one, no EOS."""
    ids = list(tokenizer(segment.text, add_special_tokens=not segment.templated, verbose=False)["input_ids"])
    ends_itself = segment.templated or segment.text.endswith(str(tokenizer.eos_token))
    return ids[:-1] if not ends_itself and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def stop_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The end-of-sequence token, and the token that ends a turn where the chat template has another."""
    found = [end_id(tokenizer)]
    render = chat_renderer(tokenizer)
    if render is None:
        return found
    marker = "answer"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": marker}]
    try:
        tail = render(messages, False).rpartition(marker)[2].strip()
    except RowError:  # a template for other roles; what it writes at a turn's end is not known
        return found
    ids = list(tokenizer(tail, add_special_tokens=False, verbose=False)["input_ids"]) if tail else []
    special = set(tokenizer.all_special_ids)
    return list(dict.fromkeys([*found, *(one for one in ids[:1] if one in special)]))


class _Reader:
    """Turns rows into token ids and exchanges."""

    def __init__(
        self,
        task: str,
        section: str,
        options: TaskOptions,
        tokenizer: "PreTrainedTokenizerBase",
        head: str,
        among: PreparedSet | None,
    ) -> None:
        answers = TASKS[task].answers
        assert answers is not None, "only tasks with answers are asked"
        self._answers, self._options, self._tokenizer = answers, options, tokenizer
        self._segmenting = Segmenting(
            task=task, completion_only=True, columns={}, split_name=section, options=options
        )
        self._render_chat: RenderChat | None = chat_renderer(tokenizer)
        self._label = None if head == "lm" else labeller(task, tokenizer)
        self.num_blank = 0
        """Rows that were read so far and hold nothing to answer."""
        self._wanted = None if among is None else set(among.arrays["row_hashes"].tolist())

    def __call__(self, row: Row, columns: Columns) -> Question | None:
        """The question of `row`; None for one that is not asked."""
        return replace(self._segmenting, columns=columns).located(row, partial(self._question, row, columns))

    def _question(self, row: Row, columns: Columns) -> Question | None:
        exchange = self._answers.exchange(row.values, columns, self._options)
        if self._wanted is not None and exchange_hash(exchange, self._options, row) not in self._wanted:
            return None
        if not exchange.prompt:
            self.num_blank += 1
            return None
        if self._label is not None:
            labelled = self._label(row.values, columns, self._options)
            return Question(
                where=row.where,
                prompt_ids=labelled.input_ids,
                exchange=labelled.exchange,
                labelled=labelled,
            )
        asked = question(exchange, self._options, self._render_chat)
        return Question(where=row.where, prompt_ids=prompt_ids(asked, self._tokenizer), exchange=exchange)
