"""How often each example of several sources comes in an epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from megatune.data.pack import mixed
from megatune.errors import DataError

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One source: examples `first : first + available`, of which an epoch takes `taken`, repeats included."""

    first: int
    available: int
    taken: int
    start: float
    """Where the even steps of drawing begin, from 0 to below 1."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The examples of an epoch.

    A source gets its share of an epoch exactly, rounded to whole examples. Its examples all come equally
    often, but for one time more for those that the seed draws: evenly spaced over the source.
    """

    parts: tuple[_Part, ...] | None
    """None: every example once."""

    @classmethod
    def of(
        cls, examples_of_source: Sequence[int], weights: Sequence[float] | None, no_row_twice: bool, seed: int
    ) -> Self:
        """The mixture with these weights. Raises DataError for a source without examples.

        An epoch is as short as it can be with every example in it, or, with `no_row_twice`, as long as
        it can be with none of them twice.
        """
        if weights is None:
            return cls(parts=None)
        counts = [*examples_of_source, *[0] * (len(weights) - len(examples_of_source))]
        empty = [str(number + 1) for number, count in enumerate(counts) if not count]
        if empty:
            raise DataError(f"part {', '.join(empty)} of the mixture has nothing to train on; take it out")
        lengths = [count / weight for count, weight in zip(counts, weights, strict=True)]
        epoch = min(lengths) if no_row_twice else max(lengths)
        firsts = np.concatenate([[0], np.cumsum(counts)]).tolist()
        starts = mixed(np.arange(len(counts), dtype=np.uint64) ^ mixed(np.array([seed], dtype=np.uint64)))
        return cls(
            parts=tuple(
                _Part(first=first, available=count, taken=max(1, round(epoch * weight)), start=start / 2**64)
                for first, count, weight, start in zip(firsts, counts, weights, starts.tolist(), strict=False)
            )
        )

    def copies_of(self, numbers: Numbers) -> Numbers:
        """How often each of these examples comes in an epoch."""
        copies = np.ones(len(numbers), dtype=np.int64)
        for part in self.parts or ():
            inner = numbers - part.first
            is_own = (inner >= 0) & (inner < part.available)
            own = inner[is_own]
            whole, rest = divmod(part.taken, part.available)
            step = rest / part.available
            drawn = np.floor((own + 1) * step + part.start) - np.floor(own * step + part.start)
            copies[is_own] = whole + drawn.astype(np.int64)
        return copies
