"""Packing loses nothing, splits nothing, and leaves little padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatune.data import pack as packing
from megatune.data.pack import pack, shuffled


def packed(lengths, max_length, seed):
    lengths = np.array(lengths, dtype=np.int64)
    windows = pack(
        lambda first, count: lengths[first : first + count], len(lengths), max_length=max_length, seed=seed
    )
    return [row for rows in windows for row in rows]


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=200), st.integers(0, 2**31), st.sampled_from([7, 20_000]))
def test_every_example_is_in_exactly_one_row_that_it_fits(lengths, seed, window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WINDOW", window)
        rows = packed(lengths, 50, seed)
    assert sorted(example for row in rows for example in row) == list(range(len(lengths)))
    assert all(sum(lengths[example] for example in row) <= 50 for row in rows)


def test_rows_of_mixed_lengths_are_more_than_99_percent_full():
    lengths = np.random.default_rng(0).integers(10, 900, size=5000).tolist()
    rows = packed(lengths, 1024, 0)
    assert sum(lengths) / (1024 * len(rows)) > 0.99


@pytest.mark.parametrize("count", [600, 30_000])
def test_rows_of_short_examples_are_more_than_97_percent_full(count):
    lengths = np.random.default_rng(0).integers(8, 97, size=count).tolist()
    rows = packed(lengths, 1024, 0)
    assert sum(lengths) / (1024 * len(rows)) > 0.97


def test_equal_seeds_give_equal_rows_and_another_seed_other_rows():
    lengths = [5, 9, 3, 7, 2] * 20
    assert packed(lengths, 10, 1) == packed(lengths, 10, 1)
    assert packed(lengths, 10, 1) != packed(lengths, 10, 2)


def test_an_example_that_fits_no_row_is_refused():
    with pytest.raises(ValueError, match="an example has 11 tokens, a row at most 10"):
        packed([3, 11], 10, 0)


def test_the_shuffle_is_this_very_one_so_that_old_runs_can_be_resumed():
    assert shuffled(8, 42, 0).tolist() == [4, 3, 2, 0, 5, 6, 1, 7]


def test_every_place_of_a_shuffle_is_about_equally_likely():
    first = np.array([shuffled(10, seed, 3)[0] for seed in range(1000)])
    counts = np.bincount(first, minlength=10)
    assert counts.min() > 60  # 100 expected, standard deviation 9.5
    assert counts.max() < 140
