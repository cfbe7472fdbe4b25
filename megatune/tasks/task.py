"""One kind of fine-tuning data, and the pieces that it is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from megatune.tasks.exchange import Exchange, Gold, exchange_segments
from megatune.tasks.options import DEFAULTS, TaskOptions
from megatune.tasks.scores import Scores
from megatune.tasks.segments import RenderChat, Segment


class SegmentsOf(Protocol):
    """How a task turns one row into segments.

    `columns` maps the names megatune reads (`prompt`) to the columns of the file (`question`).
    `render_chat` is None when the tokenizer has no chat template. An empty list means that the row
    holds nothing to train on. Raises RowError, without the place: who reads the rows knows it.
    """

    def __call__(
        self,
        row: Mapping[str, object],
        *,
        columns: Mapping[str, str],
        completion_only: bool,
        render_chat: RenderChat | None,
        options: TaskOptions = DEFAULTS,
    ) -> list[Segment]: ...


ExchangeOf = Callable[[Mapping[str, object], Mapping[str, str], TaskOptions], Exchange]
"""(row, columns, options) -> the row as question and answer. Raises RowError as `SegmentsOf` does."""
LabelsOf = Callable[[Mapping[str, object], Mapping[str, str], TaskOptions], list[str]]
"""(row, columns, options) -> the labels, or entity types, that a row has."""
Parse = Callable[[str, Exchange, TaskOptions], Gold]
"""(what the model wrote, the row, options) -> an answer in the form of `Exchange.gold`."""
Score = Callable[[list[Gold], list[Gold], TaskOptions], Scores]
"""(gold, answers, options) -> the metrics over all rows."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How a task that can be scored asks, reads and scores."""

    exchange: ExchangeOf
    parse: Parse
    score: Score
    template: str
    """The prompt where the user gives none."""
    names: frozenset[str]
    """What a template may read beside `labels`, `source_lang`, `target_lang` and `row`."""
    metrics: frozenset[str]
    """Names of the scores."""
    optional: frozenset[str] = frozenset()
    """Columns that a row may have on top of its form."""
    labels_of: LabelsOf | None = None
    """None for tasks without labels."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of fine-tuning data; a new one is a module with a `TASK` and a line in `TASKS`."""

    name: str
    """As written in `data.task`."""
    forms: tuple[tuple[str, ...], ...]
    """The sets of columns of which a row must have one, the preferred one first."""
    segments: SegmentsOf
    answers: Answers | None = None
    """None for tasks that are measured by their loss alone."""

    @property
    def columns(self) -> frozenset[str]:
        """Every column that a row may have."""
        optional = self.answers.optional if self.answers else frozenset()
        return frozenset(name for form in self.forms for name in form) | optional


def answered_task(name: str, forms: tuple[tuple[str, ...], ...], answers: Answers) -> Task:
    """A task whose rows are a question and an answer."""

    def segments(
        row: Mapping[str, object],
        *,
        columns: Mapping[str, str],
        completion_only: bool,
        render_chat: RenderChat | None,
        options: TaskOptions = DEFAULTS,
    ) -> list[Segment]:
        exchange = answers.exchange(row, columns, options)
        return exchange_segments(exchange, options, completion_only=completion_only, render_chat=render_chat)

    return Task(name=name, forms=forms, segments=segments, answers=answers)
