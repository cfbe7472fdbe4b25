"""Answers of a classifier head: the class of a text, the tags of words, the span of an answer."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from megatune.data.batches import collate
from megatune.data.examples import Counts
from megatune.data.labelled import LabelledRow
from megatune.data.tokenize import Side
from megatune.engine.speaker import Speaker
from megatune.engine.world import World
from megatune.evaluate.answered import Answered
from megatune.evaluate.rounds import answer_in_rounds
from megatune.model.forward import head_logits, model_arguments
from megatune.model.heads import HeadSpec, best_spans, head_loss_sum
from megatune.tasks.labels import IGNORED
from megatune.tasks.tags import OUTSIDE

_LONGEST_SPAN = 30
_MULTI_LABEL_THRESHOLD = 0.5


def classify(
    world: World,
    speaker: Speaker,
    rows: Sequence[LabelledRow],
    spec: HeadSpec,
    *,
    max_length: int,
    truncation_side: Side,
    rows_at_once: int,
    is_given_up: Callable[[], bool] = lambda: False,
) -> list[Answered] | None:
    """What the head says of each row, cut to `max_length` tokens, and its loss. Collective: every rank calls it.

    None when given up: see `answer_in_rounds`.
    """

    def answer(numbers: list[int], batch: int) -> list[Answered]:
        del batch
        chosen = [rows[number] for number in numbers]
        examples = [row.example(max_length, truncation_side) for row in chosen]
        read = collate([[example] for example in examples], pad_id=spec.pad_id, pad_to_multiple_of=1)
        arguments = model_arguments(
            speaker.model, read.input_ids.to(world.device), read.position_ids.to(world.device)
        )
        logits = head_logits(speaker.model(**arguments)).float().cpu()
        kept = [row.kept(max_length, truncation_side) for row in chosen]
        targets = [int(example.is_target.sum()) for example in examples]
        losses = [
            float(head_loss_sum(logits[one : one + 1], read.labels[one : one + 1], spec)) if number else 0.0
            for one, number in enumerate(targets)
        ]
        return [
            replace(answered, loss=loss, num_targets=number)
            for answered, loss, number in zip(
                read_answers(logits, chosen, kept, spec), losses, targets, strict=True
            )
        ]

    return answer_in_rounds(
        world,
        [len(row.input_ids) for row in rows],
        answer,
        rows_at_once=rows_at_once,
        in_step=speaker.in_step,
        is_given_up=is_given_up,
    )


def read_answers(
    logits: torch.Tensor, rows: list[LabelledRow], kept: list[Counts], spec: HeadSpec
) -> list[Answered]:
    """What the outputs of a head say of `rows`.

    logits: (batch, classes) of texts, (batch, seq, outputs) of tokens. kept: the places of the tokens of each row that
    the model has read.
    """
    if spec.kind == "ner":
        return [
            Answered(answer=_tags(one, row, places, spec))
            for one, row, places in zip(logits, rows, kept, strict=True)
        ]
    if spec.kind == "qa":
        return _spans(logits, rows, kept)
    if spec.multi_label:
        named = logits.sigmoid() > _MULTI_LABEL_THRESHOLD
        return [
            Answered(answer=[label for label, is_named in zip(spec.labels, one, strict=True) if is_named])
            for one in named
        ]
    best = logits.softmax(dim=-1).max(dim=-1)
    return [
        Answered(answer=spec.labels[int(index)], probability=float(value))
        for index, value in zip(best.indices, best.values, strict=True)
    ]


def _tags(logits: torch.Tensor, row: LabelledRow, kept: Counts, spec: HeadSpec) -> list[str]:
    """A tag a word; words that were cut off are outside."""
    outputs = logits.argmax(dim=-1).tolist()[: len(kept)]  # what is behind them fills a shorter row up
    best = dict(zip(kept.tolist(), outputs, strict=True))
    return [spec.labels[best[at]] if at in best else OUTSIDE for at in row.word_starts]


def _spans(logits: torch.Tensor, rows: list[LabelledRow], kept: list[Counts]) -> list[Answered]:
    candidates = torch.zeros(logits.shape[:2], dtype=torch.bool)
    for number, (row, places) in enumerate(zip(rows, kept, strict=True)):
        labels = torch.tensor(row.labels)[torch.from_numpy(places)]
        candidates[number, : len(labels)] = labels != IGNORED
    found = best_spans(logits, candidates, longest=_LONGEST_SPAN)
    return [
        Answered(answer=_text(row, int(places[first]), int(places[last])))
        for row, places, (first, last) in zip(rows, kept, found, strict=True)
    ]


def _text(row: LabelledRow, first: int, last: int) -> str:
    """What the tokens from `first` to `last` of a row stand for."""
    return row.exchange.prompt[row.offsets[first][0] : row.offsets[last][1]].strip()
