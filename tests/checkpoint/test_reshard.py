"""Moving elements between layouts, against the plain definition: cut the whole tensor, flatten, split."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatune.checkpoint.layout import Layout
from megatune.checkpoint.reshard import Placement, copies
from megatune.model.shares import part_shape
from megatune.plan.shards import Cut, Division, Segment, divide_evenly

LAYOUTS = st.builds(
    lambda dp, tp: Layout(data_parallel=dp, tensor_parallel=tp), st.integers(1, 5), st.integers(1, 4)
)


@st.composite
def weights(draw: st.DrawFn) -> tuple[tuple[int, ...], Cut]:
    """A shape and a cut of one of its dimensions, fused and uneven ones among them."""
    segments = tuple(
        Segment(draw(st.integers(1, 7)), draw(st.integers(1, 3))) for _ in range(draw(st.integers(1, 3)))
    )
    size = sum(segment.size for segment in segments)
    others = draw(st.lists(st.integers(1, 5), min_size=0, max_size=2))
    dim = draw(st.integers(0, len(others)))
    return (*others[:dim], size, *others[dim:]), Cut(dim=dim, segments=segments)


@st.composite
def flat_divisions(
    draw: st.DrawFn, shape: tuple[int, ...], cut: Cut | None, layout: Layout
) -> tuple[Division, ...]:
    """Of each tensor-parallel rank's share, as ZeRO stages 1 and 2 divide: other weights before and behind it."""
    found = []
    for tensor_rank in range(layout.tensor_parallel):
        offset, behind = draw(st.integers(0, 50)), draw(st.integers(0, 50))
        local = share(torch.empty(shape), cut, tensor_rank, layout.tensor_parallel).numel()
        size = divide_evenly(offset + local + behind, layout.data_parallel).size
        found.append(Division(offset=offset, size=size))
    return tuple(found)


def share(whole: torch.Tensor, cut: Cut | None, tensor_rank: int, degree: int) -> torch.Tensor:
    if cut is None:
        return whole
    parts = [whole.narrow(cut.dim, start, stop - start) for start, stop in cut.ranges(tensor_rank, degree)]
    return torch.cat(parts, dim=cut.dim)


def pieces(whole: torch.Tensor, cut: Cut | None, layout: Layout) -> list[torch.Tensor]:
    """What each rank holds, by the definition."""
    found = []
    for rank in range(layout.num_ranks):
        data_rank, tensor_rank = divmod(rank, layout.tensor_parallel)
        flat = share(whole, cut, tensor_rank, layout.tensor_parallel).flatten()
        size = -(-flat.numel() // layout.data_parallel)
        found.append(flat[data_rank * size : (data_rank + 1) * size])
    return found


def divided(whole: torch.Tensor, place: Placement) -> list[torch.Tensor]:
    """What each rank holds of a share that lies in a buffer: the buffer is made, and cut."""
    assert place.divisions is not None
    found, layout = [], place.layout
    for rank in range(layout.num_ranks):
        data_rank, tensor_rank = divmod(rank, layout.tensor_parallel)
        division = place.divisions[tensor_rank]
        flat = share(whole, place.cut, tensor_rank, layout.tensor_parallel).flatten()
        buffer = torch.full((division.size * layout.data_parallel,), -2)
        buffer[division.offset : division.offset + flat.numel()] = flat
        mine = buffer[data_rank * division.size : (data_rank + 1) * division.size]
        found.append(mine[mine != -2])
    return found


def moved(sources: list[torch.Tensor], old: Placement, new: Placement, rank: int) -> torch.Tensor:
    """The new piece of `rank`, filled by the copies alone; what no copy reaches stays -1."""
    start, stop = new.piece_range(rank)
    piece = torch.full((stop - start,), -1)
    for copy in copies(old, new, rank):
        piece[copy.target : copy.target + copy.count] = sources[copy.rank][
            copy.start : copy.start + copy.count
        ]
    return piece


@settings(max_examples=400, deadline=None)
@given(weights(), LAYOUTS, LAYOUTS, st.booleans(), st.booleans())
def test_every_element_of_every_new_piece_comes_from_where_the_old_layout_has_it(
    weight: tuple[tuple[int, ...], Cut], before: Layout, after: Layout, was_cut: bool, is_cut: bool
) -> None:
    shape, cut = weight
    whole = torch.arange(math.prod(shape)).view(shape)
    old = Placement(shape, cut if was_cut or before.tensor_parallel > 1 else None, before)
    new = Placement(shape, cut if is_cut or after.tensor_parallel > 1 else None, after)
    sources = pieces(whole, old.cut, before)

    for rank, expected in enumerate(pieces(whole, new.cut, after)):
        assert torch.equal(moved(sources, old, new, rank), expected)


@settings(max_examples=200, deadline=None)
@given(weights(), LAYOUTS, LAYOUTS, st.data())
def test_weights_divided_in_one_buffer_are_found_and_filled(
    weight: tuple[tuple[int, ...], Cut], before: Layout, after: Layout, data: st.DataObject
) -> None:
    shape, cut = weight
    whole = torch.arange(math.prod(shape)).view(shape)
    flat_old = Placement(shape, cut, before, data.draw(flat_divisions(shape, cut, before)))
    flat_new = Placement(shape, cut, after, data.draw(flat_divisions(shape, cut, after)))
    even_old, even_new = Placement(shape, cut, before), Placement(shape, cut, after)

    for rank, expected in enumerate(divided(whole, flat_new)):
        assert torch.equal(moved(divided(whole, flat_old), flat_old, flat_new, rank), expected)
        assert torch.equal(moved(pieces(whole, cut, before), even_old, flat_new, rank), expected)
    for rank, expected in enumerate(pieces(whole, cut, after)):
        assert torch.equal(moved(divided(whole, flat_old), flat_old, even_new, rank), expected)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), LAYOUTS, LAYOUTS)
def test_a_weight_that_no_layout_cuts_is_read_from_one_of_its_copies(
    size: int, before: Layout, after: Layout
) -> None:
    whole = torch.arange(size)
    old, new = (Placement((size,), None, layout) for layout in (before, after))
    sources = pieces(whole, None, before)

    for rank, expected in enumerate(pieces(whole, None, after)):
        assert torch.equal(moved(sources, old, new, rank), expected)
        used = {copy.rank % before.tensor_parallel for copy in copies(old, new, rank)}
        assert used <= {0}, "all that read it read the same copy"


@settings(max_examples=100, deadline=None)
@given(weights(), LAYOUTS)
def test_on_the_same_layout_a_piece_is_one_stretch_of_the_ranks_own_file(
    weight: tuple[tuple[int, ...], Cut], layout: Layout
) -> None:
    shape, cut = weight
    place = Placement(shape, cut, layout)

    for rank in range(layout.num_ranks):
        start, stop = place.piece_range(rank)
        found = copies(place, place, rank)
        assert [(copy.rank, copy.start, copy.count, copy.target) for copy in found] == (
            [(rank, 0, stop - start, 0)] if stop > start else []
        )


def test_a_rank_reads_its_part_and_nothing_else() -> None:
    shape, cut = (96, 64), Cut(dim=1, segments=(Segment(4, 16),))
    old = Placement(shape, cut, Layout(data_parallel=2, tensor_parallel=2))
    new = Placement(shape, cut, Layout(data_parallel=1, tensor_parallel=4))

    for rank in range(4):
        counts = [copy.count for copy in copies(old, new, rank)]
        assert sum(counts) == math.prod(part_shape(shape, cut, rank, 4)) == 96 * 16
        assert set(counts) == {16}, "a row of the new share lies in one stretch of the old one"
