"""Slurm's durations and amounts of memory, as its own programs write and read them."""

import pytest

from megatune.launch.slurm.quantities import parse_left_s, parse_limit_s, parse_memory_bytes

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("10:30", 630),
        ("1:00:00", 3600),
        ("2-0", 172800),
        ("1-2:30", 95400),
        ("1-2:30:01", 95401),
        ("UNLIMITED", None),
        ("", None),
        ("²", None),
        ("9" * 5000, None),
    ],
)
def test_a_limit_is_read_as_sbatch_reads_it(text: str, seconds: int | None):
    assert parse_limit_s(text) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:05", 5),
        ("59:30", 3570),
        ("02:03:04", 7384),
        ("1-02:03:04", 93784),
        ("2-00:00:01", 172801),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("NOT_SET", None),
        ("x-1:00", None),
        ("4", None),
        ("²:00", None),
        ("9" * 5000 + ":00", None),
        ("", None),
    ],
)
def test_a_duration_is_read_as_squeue_prints_it(text: str, seconds: int | None):
    assert parse_left_s(text) == seconds


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("500", 500 * 2**20),
        ("1024K", 2**20),
        ("4G", 4 * GIB),
        ("4GB", 4 * GIB),
        ("4g", 4 * GIB),
        ("2T", 2048 * GIB),
        ("0", None),
        ("much", None),
        ("9" * 5000, None),
    ],
)
def test_memory_is_read_as_sbatch_reads_it(text: str, num_bytes: int | None):
    assert parse_memory_bytes(text) == num_bytes
