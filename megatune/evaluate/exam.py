"""One split as it is scored: its loss, and where the task has answers, the answers to its rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megatune.data.choices import label_tokens
from megatune.data.prepared import PreparedSet
from megatune.data.questions import Questions
from megatune.engine.base import Predictor
from megatune.engine.speaker import Gather
from megatune.evaluate.answered import Answered
from megatune.evaluate.choices import choose
from megatune.evaluate.classify import classify
from megatune.evaluate.decoding import GREEDY, Decoding
from megatune.evaluate.generation import generate_answers
from megatune.evaluate.heldout import held_out_loss
from megatune.evaluate.text_size import TextSize, target_text_size
from megatune.tasks import TASKS, Gold, Scores, TaskOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What all ranks know of a split: the first one makes it and shares it."""

    split: str
    text_size: TextSize | None = None
    questions: Questions | None = None
    """None for tasks that are measured by their loss alone."""
    choices: list[list[int]] | None = None
    """The tokens of each label, where an answer is one of them."""


@dataclass(frozen=True, kw_only=True)
class Marking:
    """How answers are found and scored."""

    task: str
    options: TaskOptions
    decoding: Decoding = GREEDY
    gather: Gather = "auto"
    rows_at_once: int = 1
    max_rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """The scores of one split; None is unknown."""

    split: str
    num_rows: int
    loss: float | None
    target_tokens: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    """A line for each row: where it stands, prompt, gold and answer. On the first rank only."""

    def value(self, metric: str) -> float | None:
        """Of the loss or of any metric."""
        return self.loss if metric == "loss" else self.metrics.get(metric)


def set_exam(
    split: str,
    prepared: PreparedSet,
    questions: Questions | None,
    marking: Marking,
    tokenizer: "PreTrainedTokenizerBase",
) -> Exam:
    """The exam of one split. Raises DataError for labels that cannot be told apart."""
    reads_head = questions is not None and questions.rows[0].labelled is not None
    is_choice = marking.task == "classification" and not marking.options.multi_label and not reads_head
    return Exam(
        split=split,
        text_size=None if reads_head else target_text_size(prepared, tokenizer, max_rows=marking.max_rows),
        questions=questions,
        choices=(
            label_tokens(marking.options, questions.rows[0].exchange.prompt, tokenizer)
            if questions is not None and is_choice
            else None
        ),
    )


def take_exam(
    engine: Predictor,
    exam: Exam,
    prepared: PreparedSet,
    marking: Marking,
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    micro_batch: int,
    is_given_up: Callable[[], bool] = lambda: False,
) -> Result | None:
    """The scores of the model as it is. Collective: every rank calls it. None when given up.

    tokenizer: what the first rank reads answers with. `is_given_up` must say the same on all ranks.
    """
    held_out = held_out_loss(
        engine, prepared, micro_batch=micro_batch, max_rows=marking.max_rows, is_given_up=is_given_up
    )
    if held_out is None:
        return None
    metrics: dict[str, float] = {}
    if held_out.loss is not None and engine.built.source.head is None:
        metrics["perplexity"] = held_out.perplexity or 0.0
        if exam.text_size is not None:
            metrics |= exam.text_size.perplexities(held_out.loss * held_out.target_tokens)
    marked: Marked = Scores(metrics={}), []
    if exam.questions is not None:
        found = _answer(engine, exam, exam.questions, marking, is_given_up)
        if found is None:
            return None
        marked = _mark_on_first_rank(engine, exam.questions, found, marking, tokenizer)
    scores, lines = marked
    return Result(
        split=exam.split,
        num_rows=len(exam.questions.rows) if exam.questions else prepared.num_examples,
        loss=held_out.loss,
        target_tokens=held_out.target_tokens,
        metrics={**metrics, **scores.metrics},
        intervals=scores.intervals,
        details=scores.details,
        answers=lines,
    )


Marked = tuple[Scores, list[dict[str, Any]]]


def _answer(
    engine: Predictor, exam: Exam, questions: Questions, marking: Marking, is_given_up: Callable[[], bool]
) -> list[Answered] | None:
    rounds: dict[str, Any] = {"rows_at_once": marking.rows_at_once, "is_given_up": is_given_up}
    prompts = [row.prompt_ids for row in questions.rows]
    spec = engine.built.source.head
    with engine.speaking(marking.gather) as speaker:
        if spec is not None:
            rows = [row.labelled for row in questions.rows if row.labelled is not None]
            longest = questions.max_prompt_tokens
            return classify(engine.world, speaker, rows, spec, max_length=longest, **rounds)
        if exam.choices is not None:
            chosen = choose(engine.world, speaker, prompts, exam.choices, **rounds)
            labels = marking.options.labels
            if chosen is None:
                return None
            return [Answered(answer=labels[one.index], probability=one.probability) for one in chosen]
        stops: dict[str, Any] = {"stop_ids": questions.stop_ids, "pad_id": questions.pad_id}
        written = generate_answers(engine.world, speaker, prompts, marking.decoding, **stops, **rounds)
        return None if written is None else [Answered(ids=ids) for ids in written]


def _mark_on_first_rank(
    engine: Predictor,
    questions: Questions,
    found: list[Answered],
    marking: Marking,
    tokenizer: "PreTrainedTokenizerBase | None",
) -> Marked:
    """The scores on every rank, the lines on the first."""
    lines: list[dict[str, Any]] = []

    def mark() -> Scores:
        scores, marked = _mark(questions, found, marking, tokenizer)
        lines.extend(marked)
        return scores

    return engine.world.first_rank(mark), lines


def _mark(
    questions: Questions, found: list[Answered], marking: Marking, tokenizer: "PreTrainedTokenizerBase | None"
) -> Marked:
    task = TASKS[marking.task].answers
    assert task is not None, "questions are made for tasks with answers"
    exchanges = [row.exchange for row in questions.rows]
    texts = [None if one.ids is None else _decoded(one.ids, tokenizer) for one in found]
    answers: list[Gold] = [
        one.answer or "" if text is None else task.parse(text, exchange, marking.options)
        for one, text, exchange in zip(found, texts, exchanges, strict=True)
    ]
    gold = [exchange.gold for exchange in exchanges]
    lines = [
        {
            "row": row.where,
            "prompt": row.exchange.prompt,
            "gold": row.exchange.gold,
            "answer": answer,
            **({} if text is None else {"text": text}),
            **({} if one.probability is None else {"probability": round(one.probability, 6)}),
        }
        for row, answer, text, one in zip(questions.rows, answers, texts, found, strict=True)
    ]
    return task.score(gold, answers, marking.options), lines


def _decoded(ids: list[int], tokenizer: "PreTrainedTokenizerBase | None") -> str:
    assert tokenizer is not None, "the first rank has one"
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
