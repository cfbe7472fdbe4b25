"""Sums through shared memory are right, the same on all ranks, and end where a rank is missing."""

import pytest
import torch
from shared_sum_cases import (
    SLOT_ELEMENTS,
    left_to_others,
    many_sums,
    one_does_not_come,
    one_has_ended,
    sums_of,
)
from worlds import Worlds

pytestmark = pytest.mark.world


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize(
    ("dtype", "num_elements"),
    [("float32", 1), ("float32", 2 * SLOT_ELEMENTS + 3), ("bfloat16", 1000), ("float16", 1000)],
)
def test_a_sum_is_right_and_the_same_on_all_ranks(
    worlds: Worlds, num_ranks: int, dtype: str, num_elements: int
) -> None:
    allowed = num_ranks * torch.finfo(getattr(torch, dtype)).eps

    for apart, is_same in worlds.run(num_ranks, sums_of, dtype, num_elements):
        assert is_same
        assert apart <= allowed


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_no_rank_reads_parts_of_another_sum(worlds: Worlds, num_ranks: int) -> None:
    assert worlds.run(num_ranks, many_sums, 100) == [[]] * num_ranks


def test_other_dtypes_and_tensors_with_gaps_are_left_to_gloo(worlds: Worlds) -> None:
    assert worlds.run(2, left_to_others) == [[False, False, True]] * 2


def test_a_rank_that_does_not_come_is_named_after_the_timeout(worlds: Worlds) -> None:
    told = worlds.run(2, one_does_not_come, 2.0)[0]

    assert told == "timed out waiting 2 s for rank 1 of a group of one host"


def test_a_rank_that_has_ended_is_named_at_once(worlds: Worlds) -> None:
    told = worlds.run(2, one_has_ended)[0]

    assert told == "connection closed by peer: rank 1 of a group of one host has ended"
