"""Prepared rows -> padded tensors with labels and positions, without leaking between documents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatune.data.examples import Example
from megatune.data.prepared import PreparedSet
from megatune.data.sampler import Position, RowNumbers, micro_batch_rows, step_rows
from megatune.tasks.labels import IGNORED


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of a rank.

    There is no attention mask, on purpose: transformers tells documents apart by positions that
    begin at 0 again, and stops doing so without a word when a mask comes with them.
    """

    input_ids: torch.Tensor
    """(batch, seq), int64. The documents of a row one after another, then padding."""
    position_ids: torch.Tensor
    """(batch, seq), int64. From 0 in each document, and in the padding."""
    labels: torch.Tensor
    """(batch, seq), int64. The token that comes next; -100 where no loss is taken: outside the targets,
    at the last token of a document, in the padding. Already shifted: logits and labels line up. For a
    classifier head as in `labelled.py`."""
    num_targets: int
    """Losses that are taken: labels, or for a classifier head rows or words."""
    num_tokens: int
    """Tokens without the padding."""
    sum_squared_lengths: int
    """Of the documents, each length squared: what the cost of attention grows with."""


def collate(rows: Sequence[Sequence[Example]], *, pad_id: int, pad_to_multiple_of: int = 8) -> Batch:
    """One batch of `rows`, each a list of documents, as wide as the longest, rounded up.

    Without rows it is one row of padding, which has no targets: a rank without data runs the same
    collectives as the others. `pad_id` is only a filler.
    """
    num_rows = max(len(rows), 1)
    longest = max((sum(len(document.input_ids) for document in row) for row in rows), default=0)
    width = max(1, -(-longest // pad_to_multiple_of)) * pad_to_multiple_of
    ids = np.full((num_rows, width), pad_id, dtype=np.int64)
    labels = np.full((num_rows, width), IGNORED, dtype=np.int64)
    positions = np.tile(np.arange(width, dtype=np.int64), (num_rows, 1))
    for row, documents in enumerate(rows):
        _place(documents, ids[row], positions[row], labels[row])
    lengths = [len(document.input_ids) for documents in rows for document in documents]
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        labels=torch.from_numpy(labels),
        num_targets=_num_targets(rows, labels),
        num_tokens=sum(lengths),
        sum_squared_lengths=sum(length * length for length in lengths),
    )


def step_batches(
    prepared: PreparedSet,
    position: Position,
    *,
    seed: int,
    micro_batch: int,
    accumulation: int,
    data_parallel: int,
    dp_rank: int,
) -> list[Batch]:
    """This rank's micro-batches of the optimizer step that begins at `position`: `accumulation` of them.

    The longest rows come first: the loss of a step does not depend on how its rows fall into micro-batches and
    ranks, and where those of like length share one there is less padding, and ranks wait less for each other.
    All ranks of a tensor-parallel group pass the same `dp_rank` and get the same batches.
    """
    global_rows = micro_batch * accumulation * data_parallel
    rows = step_rows(position, num_rows=prepared.num_rows, global_rows=global_rows, seed=seed)
    rows = rows[np.argsort(-prepared.lengths_of(rows), kind="stable")]
    micro_batches = micro_batch_rows(
        rows,
        micro_batch=micro_batch,
        accumulation=accumulation,
        data_parallel=data_parallel,
        dp_rank=dp_rank,
        turn=position.epoch + position.cursor // global_rows,
    )
    return [_batch(prepared, numbers) for numbers in micro_batches]


def evaluation_batches(
    prepared: PreparedSet,
    *,
    micro_batch: int,
    data_parallel: int,
    dp_rank: int,
    max_rows: int | None = None,
) -> Iterator[Batch]:
    """This rank's part of all rows, or of the first `max_rows`, the longest first: rows of like length share a batch.

    Every rank gets equally many batches, some of them without targets at the end, so that ranks
    which run collectives in each forward stay together.
    """
    num_rows = prepared.num_rows if max_rows is None else min(max_rows, prepared.num_rows)
    at_once = micro_batch * data_parallel
    order = np.argsort(-prepared.row_lengths(num_rows), kind="stable")
    for start in range(0, num_rows, at_once):
        rows = order[start : start + at_once]
        yield _batch(prepared, rows[dp_rank::data_parallel])


def _batch(prepared: PreparedSet, numbers: RowNumbers) -> Batch:
    return collate([prepared.row(int(number)) for number in numbers], pad_id=prepared.pad_id)


def _num_targets(
    rows: Sequence[Sequence[Example]], labels: "np.ndarray[tuple[int, int], np.dtype[np.int64]]"
) -> int:
    """A span head has labels at every token it may choose, and one loss a row."""
    if any(document.labels is not None for row in rows for document in row):
        return sum(int(document.is_target.sum()) for row in rows for document in row)
    return int((labels != IGNORED).sum())


_Line = np.ndarray[tuple[int], np.dtype[np.int64]]


def _place(documents: Sequence[Example], ids: _Line, positions: _Line, labels: _Line) -> None:
    """Write the documents of one row into its lines; what comes after them is padding already."""
    start = 0
    for document in documents:
        end = start + len(document.input_ids)
        ids[start:end] = document.input_ids
        positions[start:end] = np.arange(end - start)
        if document.labels is not None:
            labels[start:end] = document.labels  # of the token itself, not of the next one
        else:
            labels[start : end - 1] = np.where(document.is_target[1:], document.input_ids[1:], IGNORED)
        start = end
    positions[start:] = np.arange(len(positions) - start)
