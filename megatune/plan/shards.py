"""Which rows or columns of a weight each tensor-parallel rank holds: arithmetic only.

A weight is cut along one dimension. That dimension is made of one or more *segments* (a fused
query-key-value weight has three), each segment of whole *units* (a head, a feature, a
vocabulary row) that are never cut. Each rank holds a run of units of every segment. Counts
that the group does not divide are allowed: the first ranks hold one unit more. Where a group has more
ranks than there are units, a unit is shared out by its parts: the query heads of one key-value head.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass


def split_units(num_units: int, tensor_parallel: int) -> list[int]:
    """How many units each rank holds.

    >>> split_units(25, 2)
    [13, 12]
    """
    base, extra = divmod(num_units, tensor_parallel)
    return [base + (rank < extra) for rank in range(tensor_parallel)]


def split_parts(num_units: int, unit_parts: int, tensor_parallel: int) -> list[int]:
    """How many parts each rank holds, of units of `unit_parts` each: those of several units, or of one alone.

    >>> split_parts(3, 4, 2), split_parts(2, 7, 4), split_parts(3, 3, 4)
    ([8, 4], [4, 3, 4, 3], [3, 3, 2, 1])
    """
    if tensor_parallel <= num_units:
        return [count * unit_parts for count in split_units(num_units, tensor_parallel)]
    return [
        count
        for num_ranks in _ranks_of_units(num_units, tensor_parallel)
        for count in split_units(unit_parts, num_ranks)
    ]


def unit_of(rank: int, num_units: int, tensor_parallel: int) -> int:
    """Which unit `rank` has parts of, where each rank has those of one alone.

    >>> [unit_of(rank, 3, 4) for rank in range(4)]
    [0, 1, 2, 2]
    """
    ranks_of_units = _ranks_of_units(num_units, tensor_parallel)
    return [unit for unit, num_ranks in enumerate(ranks_of_units) for _ in range(num_ranks)][rank]


def _ranks_of_units(num_units: int, tensor_parallel: int) -> list[int]:
    """How many ranks share each unit: the last ones have the most, so that the first ranks hold the most here too."""
    return split_units(tensor_parallel, num_units)[::-1]


@dataclass(frozen=True)
class Segment:
    """`num_units` units of `unit_size` elements each, side by side along the cut dimension."""

    num_units: int
    unit_size: int
    unit_parts: int = 1
    """Equal parts that a unit is shared out by, where a group has more ranks than there are units."""

    @property
    def size(self) -> int:
        return self.num_units * self.unit_size


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One weight cut along `dim` (0: output features, 1: input features of a Linear)."""

    dim: int
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        """Elements of the whole, uncut dimension."""
        return sum(segment.size for segment in self.segments)

    def ranges(self, rank: int, tensor_parallel: int) -> list[tuple[int, int]]:
        """The [start, stop) ranges of the whole dimension that `rank` holds, one a segment.

        >>> Cut(dim=0, segments=(Segment(4, 8), Segment(4, 8))).ranges(1, 2)
        [(16, 32), (48, 64)]
        """
        found, offset = [], 0
        for segment in self.segments:
            counts = split_parts(segment.num_units, segment.unit_parts, tensor_parallel)
            part_size = segment.unit_size // segment.unit_parts
            start = offset + sum(counts[:rank]) * part_size
            found.append((start, start + counts[rank] * part_size))
            offset += segment.size
        return found

    def local_size(self, rank: int, tensor_parallel: int) -> int:
        """Elements of the cut dimension on `rank`."""
        return sum(stop - start for start, stop in self.ranges(rank, tensor_parallel))

    def to_json(self) -> dict[str, object]:
        return {"dim": self.dim, "segments": [list(astuple(segment)) for segment in self.segments]}

    @classmethod
    def from_json(cls, stored: dict[str, object]) -> "Cut":
        segments = stored["segments"]
        assert isinstance(segments, Sequence), "written by to_json"
        return cls(
            dim=int(str(stored["dim"])), segments=tuple(Segment(*map(int, segment)) for segment in segments)
        )


@dataclass(frozen=True)
class Division:
    """How data-parallel ranks divide the flattened share that one tensor-parallel rank has of a weight.

    The share lies `offset` elements into a buffer of several weights, and the buffer is cut every `size`
    elements: ZeRO stages 1 and 2 do that. Stage 3 divides each weight by itself (`evenly`).
    """

    offset: int
    size: int

    def piece(self, data_rank: int, num_elements: int) -> tuple[int, int]:
        """The [start, stop) of a share of `num_elements` that `data_rank` holds.

        >>> [Division(offset=3, size=4).piece(rank, 6) for rank in range(3)]
        [(0, 1), (1, 5), (5, 6)]
        """
        start, stop = data_rank * self.size - self.offset, (data_rank + 1) * self.size - self.offset
        return min(max(start, 0), num_elements), min(max(stop, 0), num_elements)

    def owner(self, index: int) -> int:
        """The data-parallel rank that holds the element `index` of the share."""
        return (self.offset + index) // self.size


def divide_evenly(num_elements: int, data_parallel: int) -> Division:
    """A share divided by itself, the last pieces shorter or empty.

    >>> divide_evenly(10, 4)
    Division(offset=0, size=3)
    """
    return Division(offset=0, size=-(-num_elements // data_parallel))
