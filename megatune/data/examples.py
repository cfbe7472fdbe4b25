"""Examples, one or many: of many, all tokens in one array, and beside it how long each example is.

What Python does for a row by itself takes a third of the time that its tokens take the tokenizer. So what is
asked of each row is asked here of a batch of rows at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """One document, ready to be trained on."""

    input_ids: Ids
    """(length,), int32."""
    is_target: Mask
    """(length,). Never true for the first token, which nothing predicts: its sum is the number of losses."""
    labels: Ids | None = None
    """(length,), for a classifier head: see `labelled.py`. Then `is_target` counts losses and no more."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The examples of a batch of rows, in the order of the rows; those of one row one behind the other."""

    input_ids: Ids
    """(tokens,), of all examples."""
    is_target: Mask
    """(tokens,), as `Example` has it."""
    lengths: Counts
    """(examples,), in tokens."""
    rows: Counts
    """(examples,). The place of the row in the batch; a row may have none, one or several examples."""
    num_cut: Counts
    """(examples,). Tokens of the row that are in no example."""
    labels: Ids | None = None

    @classmethod
    def joined(cls, examples: Sequence[Example], rows: Sequence[int], num_cut: Sequence[int]) -> Self:
        """Examples that were made one by one."""
        labels = [example.labels for example in examples if example.labels is not None]
        return cls(
            input_ids=np.concatenate([np.empty(0, np.int32), *(example.input_ids for example in examples)]),
            is_target=np.concatenate([np.empty(0, np.bool_), *(example.is_target for example in examples)]),
            lengths=np.array([len(example.input_ids) for example in examples], dtype=np.int64),
            rows=np.array(rows, dtype=np.int64),
            num_cut=np.array(num_cut, dtype=np.int64),
            labels=np.concatenate(labels) if labels else None,
        )

    def __len__(self) -> int:
        """How many examples."""
        return len(self.lengths)

    def __getitem__(self, at: int) -> Example:
        """One of them; its arrays are views."""
        stop = int(self.lengths[: at + 1].sum())
        tokens = slice(stop - int(self.lengths[at]), stop)
        labels = None if self.labels is None else self.labels[tokens]
        return Example(self.input_ids[tokens], self.is_target[tokens], labels)

    def count(self, tokens: Mask) -> Counts:
        """(examples,): for how many tokens of each example `tokens`, which is (tokens,), is true."""
        before = np.concatenate((np.zeros(1, np.int64), np.cumsum(tokens)))
        stops = np.cumsum(self.lengths)
        found: Counts = before[stops] - before[stops - self.lengths]
        return found

    def chosen(self, examples: Mask) -> "Examples":
        """Only those where `examples` is true."""
        if examples.all():
            return self
        starts = np.cumsum(self.lengths) - self.lengths
        return self.cut(starts[examples], self.lengths[examples], self.rows[examples], self.num_cut[examples])

    def cut(self, starts: Counts, lengths: Counts, rows: Counts, num_cut: Counts) -> "Examples":
        """The examples that begin at `starts` in `input_ids`."""
        at = runs(starts, lengths)
        return Examples(
            input_ids=self.input_ids[at],
            is_target=self.is_target[at],
            lengths=lengths,
            rows=rows,
            num_cut=num_cut,
            labels=None if self.labels is None else self.labels[at],
        )

    @property
    def pieces(self) -> Counts:
        """(examples,): which example of its row each is, from 0."""
        found: Counts = np.arange(len(self)) - np.searchsorted(self.rows, self.rows, side="left")
        return found


def runs(starts: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> Counts:
    """The numbers of several runs, each from a start on, one behind the other.

    >>> runs(np.array([7, 2]), np.array([2, 3])).tolist()
    [7, 8, 2, 3, 4]
    """
    before = np.cumsum(lengths) - lengths
    found: Counts = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
    return found
