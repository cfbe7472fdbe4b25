"""The peak of a process's own memory, whatever the system does with the files that it has mapped."""

import mmap
from pathlib import Path

import pytest

from megatune.train.memory import HostGauge

MIB = 2**20
SIZE = 64 * MIB


@pytest.fixture
def mapped(tmp_path: Path) -> mmap.mmap:
    """A file whose pages are all mapped and resident."""
    path = tmp_path / "weights"
    path.write_bytes(b"\1" * SIZE)
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ)
    for start in range(0, SIZE, mmap.PAGESIZE):
        pages[start]
    return pages


def test_pages_of_files_that_are_taken_back_after_a_peak_are_no_part_of_it(mapped: mmap.mmap) -> None:
    gauge = HostGauge()
    gauge.reset_peak()
    before = gauge.read().now
    if before is None:
        pytest.skip("this system does not tell the memory of a process")
    # Not from the allocator, which may have kept as much.
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for start in range(0, SIZE, mmap.PAGESIZE):
            block[start] = 1
        gauge.read()  # as a step does when its loss is known
    mapped.madvise(mmap.MADV_DONTNEED)

    usage = gauge.read()

    assert usage.peak == pytest.approx(before + SIZE, abs=4 * MIB)
    assert usage.resident_peak is not None and usage.resident_peak > before + 2 * SIZE - 4 * MIB


def test_a_reset_forgets_what_was_before(mapped: mmap.mmap) -> None:
    gauge = HostGauge()
    gauge.read()
    mapped.madvise(mmap.MADV_DONTNEED)
    gauge.reset_peak()

    usage = gauge.read()

    if usage.now is None:
        pytest.skip("this system does not tell the memory of a process")
    assert usage.peak == pytest.approx(usage.now, abs=4 * MIB)
