"""Who holds what: arithmetic that checkpoints and exports depend on."""

from hypothesis import given
from hypothesis import strategies as st

from megatune.plan.shards import Cut, Segment, split_parts, split_units, unit_of

SEGMENTS = st.lists(
    st.builds(
        lambda units, size, parts: Segment(units, size * parts, parts),
        st.integers(1, 40),
        st.integers(1, 16),
        st.integers(1, 8),
    ),
    min_size=1,
    max_size=3,
)


@given(SEGMENTS, st.integers(1, 8))
def test_the_ranks_hold_every_element_exactly_once(segments: list[Segment], ranks: int) -> None:
    cut = Cut(dim=0, segments=tuple(segments))
    held = [
        element
        for rank in range(ranks)
        for start, stop in cut.ranges(rank, ranks)
        for element in range(start, stop)
    ]
    assert sorted(held) == list(range(cut.size))


@given(SEGMENTS, st.integers(1, 8))
def test_no_unit_is_divided_but_among_ranks_that_outnumber_them(segments: list[Segment], ranks: int) -> None:
    cut = Cut(dim=0, segments=tuple(segments))
    for rank in range(ranks):
        offset = 0
        for segment, (start, stop) in zip(segments, cut.ranges(rank, ranks), strict=True):
            is_shared = ranks > segment.num_units
            whole = segment.unit_size // segment.unit_parts if is_shared else segment.unit_size
            assert (start - offset) % whole == 0
            assert (stop - start) % whole == 0
            if is_shared and start < stop:
                units = {(start - offset) // segment.unit_size, (stop - 1 - offset) // segment.unit_size}
                assert units == {unit_of(rank, segment.num_units, ranks)}
            offset += segment.size


@given(st.integers(0, 100), st.integers(1, 16))
def test_shares_differ_by_one_unit_at_most(units: int, ranks: int) -> None:
    counts = split_units(units, ranks)
    assert sum(counts) == units
    assert max(counts) - min(counts) <= 1


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 16))
def test_the_first_rank_holds_the_most(units: int, parts: int, ranks: int) -> None:
    counts = split_parts(units, parts, ranks)
    assert len(counts) == ranks
    assert counts[0] == max(counts)


@given(SEGMENTS)
def test_a_cut_survives_its_json(segments: list[Segment]) -> None:
    cut = Cut(dim=1, segments=tuple(segments))
    assert Cut.from_json(cut.to_json()) == cut
