"""One split as it is scored: its loss, and where the task has answers, the answers to its rows."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megatune.data.choices import label_tokens
from megatune.data.prepared import PreparedSet
from megatune.data.questions import Questions
from megatune.data.tokenize import Side
from megatune.engine.base import Predictor
from megatune.engine.speaker import Gather
from megatune.evaluate.answered import Answered
from megatune.evaluate.choices import Choice, choose
from megatune.evaluate.classify import classify
from megatune.evaluate.coverage import asking_notices, loss_notice
from megatune.evaluate.decoding import GREEDY, Decoding
from megatune.evaluate.generation import generate_answers
from megatune.evaluate.heldout import HeldOutLoss, held_out_loss, loss_of_answers
from megatune.evaluate.text_size import TextSize, targets_of, text_size
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
    gold: list[int] | None = None
    """The label of each row, where an answer is one of them."""


@dataclass(frozen=True, kw_only=True)
class Marking:
    """How answers are found and scored."""

    task: str
    options: TaskOptions
    decoding: Decoding = GREEDY
    gather: Gather = "auto"
    rows_at_once: int = 1
    max_rows: int | None = None
    completion_only: bool = True
    """The loss is taken on answers alone, as in training."""
    truncation_side: Side = "right"
    """The end of a long row that a classifier head does not read, as in training."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The scores of one split; None is unknown."""

    split: str
    num_rows: int
    loss: float | None
    loss_rows: int
    """Rows that the loss is over: others than `num_rows` where a notice says why."""
    target_tokens: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    """A line for each row: where it stands, prompt, gold and answer. On the first rank only."""
    notices: list[str] = field(default_factory=list)
    """What a reader of the scores must know of them."""

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
    if questions is not None and questions.rows[0].labelled is not None:
        return Exam(split=split, questions=questions)
    choices: list[list[int]] | None = None
    gold: list[int] | None = None
    targets: Iterable[list[int]] = targets_of(prepared, max_rows=marking.max_rows)
    if questions is not None and marking.task == "classification" and not marking.options.multi_label:
        choices = label_tokens(marking.options, questions.rows[0].exchange.prompt, tokenizer)
        gold = [marking.options.labels.index(str(row.exchange.gold)) for row in questions.rows]
        if marking.completion_only:
            targets = [choices[one] for one in gold]
    size = text_size(targets, tokenizer)
    return Exam(split=split, text_size=size, questions=questions, choices=choices, gold=gold)


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
    found: list[Answered] | None = None
    if exam.questions is not None:
        found = _answer(engine, exam, exam.questions, marking, is_given_up)
        if found is None:
            return None
    told_with = None if found is None else loss_of_answers(found)
    held_out = told_with or held_out_loss(
        engine, prepared, micro_batch=micro_batch, max_rows=marking.max_rows, is_given_up=is_given_up
    )
    if held_out is None:
        return None
    marked: Marked = Scores(metrics={}), []
    if exam.questions is not None and found is not None:
        marked = _mark_on_first_rank(engine, exam.questions, found, marking, tokenizer)
    scores, lines = marked
    questions = exam.questions
    perplexities = _perplexities(engine, exam, held_out)
    notice = loss_notice(
        held_out.num_rows,
        None if found is None else len(found),
        prepared,
        with_answers=told_with is not None,
        max_rows=marking.max_rows,
        num_blank=questions.num_blank if questions else 0,
    )
    return Result(
        split=exam.split,
        num_rows=held_out.num_rows if found is None else len(found),
        loss=held_out.loss,
        loss_rows=held_out.num_rows,
        target_tokens=held_out.target_tokens,
        metrics={**perplexities, **scores.metrics},
        intervals={
            **{name: value for name, value in held_out.intervals.items() if name in {"loss", *perplexities}},
            **scores.intervals,
        },
        details=scores.details,
        answers=lines,
        notices=[
            *([notice] if notice else []),
            *(asking_notices(questions) if questions else []),
            *scores.notices,
        ],
    )


def _perplexities(engine: Predictor, exam: Exam, held_out: HeldOutLoss) -> dict[str, float]:
    """Of text; a class has none."""
    if held_out.loss is None or engine.built.source.head is not None:
        return {}
    found = {"perplexity": held_out.perplexity or 0.0}
    if exam.text_size is None:
        return found
    return found | exam.text_size.perplexities(held_out.loss * held_out.target_tokens)


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
            cut: dict[str, Any] = {
                "max_length": questions.max_prompt_tokens,
                "truncation_side": marking.truncation_side,
            }
            return classify(engine.world, speaker, rows, spec, **cut, **rounds)
        if exam.choices is not None and exam.gold is not None:
            chosen = choose(engine.world, speaker, prompts, exam.choices, exam.gold, **rounds)
            return None if chosen is None else _chosen(chosen, exam.choices, exam.gold, marking)
        stops: dict[str, Any] = {"stop_ids": questions.stop_ids, "pad_id": questions.pad_id}
        written = generate_answers(engine.world, speaker, prompts, marking.decoding, **stops, **rounds)
        return None if written is None else [Answered(ids=ids) for ids in written]


def _chosen(
    chosen: list[Choice], choices: list[list[int]], gold: list[int], marking: Marking
) -> list[Answered]:
    """Labels, with the loss of the gold ones where training takes no other."""
    return [
        Answered(
            answer=marking.options.labels[one.index],
            probability=one.probability,
            loss=one.gold_loss if marking.completion_only else None,
            num_targets=len(choices[right]),
        )
        for one, right in zip(chosen, gold, strict=True)
    ]


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
