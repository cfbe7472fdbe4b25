"""Who holds what: arithmetic that checkpoints and exports depend on."""

from hypothesis import given
from hypothesis import strategies as st

from megatune.plan.shards import Cut, Segment, split_units

SEGMENTS = st.lists(
    st.builds(Segment, num_units=st.integers(1, 40), unit_size=st.integers(1, 16)), min_size=1, max_size=3
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
def test_no_unit_is_divided(segments: list[Segment], ranks: int) -> None:
    cut = Cut(dim=0, segments=tuple(segments))
    for rank in range(ranks):
        offset = 0
        for segment, (start, stop) in zip(segments, cut.ranges(rank, ranks), strict=True):
            assert (start - offset) % segment.unit_size == 0
            assert (stop - start) % segment.unit_size == 0
            offset += segment.size


@given(st.integers(0, 100), st.integers(1, 16))
def test_shares_differ_by_one_unit_at_most(units: int, ranks: int) -> None:
    counts = split_units(units, ranks)
    assert sum(counts) == units
    assert max(counts) - min(counts) <= 1


@given(SEGMENTS)
def test_a_cut_survives_its_json(segments: list[Segment]) -> None:
    cut = Cut(dim=1, segments=tuple(segments))
    assert Cut.from_json(cut.to_json()) == cut
