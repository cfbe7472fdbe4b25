"""Where the elements of a parameter lie under one layout, and how they get to another: arithmetic only.

Three coordinates lead from a whole weight to what a rank holds:
  whole   index into the flattened whole weight;
  share   index into the flattened share of a tensor-parallel rank (`Cut.ranges` of one dimension);
  piece   index into the stretch of that share that one data-parallel rank holds (`Division`), without
          padding: n = ceil(share / data-parallel ranks) elements from d * n on for data rank d, unless the
          weights of a buffer are divided together.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from megatune.checkpoint.layout import Layout
from megatune.plan.shards import Cut, Division, divide_evenly


@dataclass(frozen=True)
class Copy:
    """`count` elements from `start` of the piece of the old rank `rank` to `target` of the new piece."""

    rank: int
    start: int
    count: int
    target: int


@dataclass(frozen=True)
class _Stretch:
    """Indices [start, stop) of the cut dimension belong to `tensor_rank`, from `local` on in its share."""

    start: int
    stop: int
    tensor_rank: int
    local: int


@dataclass(frozen=True)
class Placement:
    """One parameter under one layout. Without a `cut` every tensor-parallel rank holds the whole."""

    shape: tuple[int, ...]
    """Of the whole weight."""
    cut: Cut | None
    layout: Layout
    divisions: tuple[Division, ...] | None = None
    """Of each tensor-parallel rank's share over data-parallel ranks; None: evenly, by itself."""

    def piece_range(self, rank: int) -> tuple[int, int]:
        """The [start, stop) of its tensor-parallel share that `rank` holds; empty where padding is all.

        >>> Placement((10,), None, Layout(data_parallel=4, tensor_parallel=1)).piece_range(3)
        (9, 10)
        """
        data_rank, tensor_rank = divmod(rank, self.layout.tensor_parallel)
        return self._division(tensor_rank).piece(data_rank, self._share_elements(tensor_rank))

    def whole_intervals(self, rank: int) -> Iterator[tuple[int, int]]:
        """The [start, stop) of the flattened whole weight that make up the piece of `rank`, in order."""
        first, last = self.piece_range(rank)
        if self.cut is None:
            if first < last:
                yield first, last
            return
        tensor_rank = rank % self.layout.tensor_parallel
        row = self._local_size(tensor_rank) * self._inner
        for outer in range(first // row if row else 0, -(-last // row) if row else 0):
            offset = outer * row
            for start, stop in self.cut.ranges(tensor_rank, self.layout.tensor_parallel):
                count = (stop - start) * self._inner
                low, high = max(first, offset), min(last, offset + count)
                if low < high:
                    whole = (outer * self.cut.size + start) * self._inner - offset
                    yield whole + low, whole + high
                offset += count

    def locate(self, whole: int) -> tuple[int, int, int]:
        """Who holds the element `whole`: (rank, index in its piece, elements that follow it there in order).

        Of equal copies the first tensor-parallel rank's counts, so that all that read it read the same.
        """
        if self.cut is None:
            tensor_rank, offset, length = 0, whole, math.prod(self.shape) - whole
        else:
            outer, within = divmod(whole, self.cut.size * self._inner)
            stretch = self._stretch_at(within // self._inner)
            in_stretch = within - stretch.start * self._inner
            tensor_rank = stretch.tensor_rank
            row = self._local_size(tensor_rank) * self._inner
            offset = outer * row + stretch.local * self._inner + in_stretch
            length = (stretch.stop - stretch.start) * self._inner - in_stretch
        division = self._division(tensor_rank)
        data_rank = division.owner(offset)
        start, stop = division.piece(data_rank, self._share_elements(tensor_rank))
        rank = data_rank * self.layout.tensor_parallel + tensor_rank
        return rank, offset - start, min(length, stop - offset)

    def _stretch_at(self, index: int) -> _Stretch:
        return self._stretches[bisect_right(self._starts, index) - 1]

    @cached_property
    def _stretches(self) -> list[_Stretch]:
        assert self.cut is not None, "asked for cut weights only"
        found = []
        for tensor_rank in range(self.layout.tensor_parallel):
            local = 0
            for start, stop in self.cut.ranges(tensor_rank, self.layout.tensor_parallel):
                if start < stop:
                    found.append(_Stretch(start, stop, tensor_rank, local))
                local += stop - start
        return sorted(found, key=lambda stretch: stretch.start)

    @cached_property
    def _starts(self) -> list[int]:
        return [stretch.start for stretch in self._stretches]

    @cached_property
    def _inner(self) -> int:
        """Elements behind one index of the cut dimension."""
        assert self.cut is not None, "asked for cut weights only"
        return math.prod(self.shape[self.cut.dim + 1 :])

    def _local_size(self, tensor_rank: int) -> int:
        assert self.cut is not None, "asked for cut weights only"
        return self.cut.local_size(tensor_rank, self.layout.tensor_parallel)

    def _share_elements(self, tensor_rank: int) -> int:
        if self.cut is None:
            return math.prod(self.shape)
        return math.prod(self.shape[: self.cut.dim]) * self._local_size(tensor_rank) * self._inner

    def _division(self, tensor_rank: int) -> Division:
        if self.divisions is not None:
            return self.divisions[tensor_rank]
        return divide_evenly(self._share_elements(tensor_rank), self.layout.data_parallel)


def copies(old: Placement, new: Placement, rank: int) -> list[Copy]:
    """What fills the piece of `rank` under `new` from the pieces under `old`, in the order of the piece.

    >>> old = Placement((10,), None, Layout(data_parallel=2, tensor_parallel=1))
    >>> copies(old, Placement((10,), None, Layout(data_parallel=3, tensor_parallel=1)), 1)
    [Copy(rank=0, start=4, count=1, target=0), Copy(rank=1, start=0, count=3, target=1)]
    """
    found: list[Copy] = []
    target = 0
    for start, stop in new.whole_intervals(rank):
        while start < stop:
            source, index, length = old.locate(start)
            count = min(length, stop - start)
            _append(found, Copy(source, index, count, target))
            start, target = start + count, target + count
    return found


def _append(found: list[Copy], copy: Copy) -> None:
    """Add `copy`, as a part of the last one where it goes on from there: one read instead of many."""
    if found:
        last = found[-1]
        if last.rank == copy.rank and last.start + last.count == copy.start:
            found[-1] = Copy(last.rank, last.start, last.count + copy.count, last.target)
            return
    found.append(copy)
