"""The peak of a process's own memory, whatever the system does with the files that it has mapped."""

import mmap
import os
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


def test_shared_memory_is_divided_by_those_that_have_it() -> None:
    gauge = HostGauge()
    before = gauge.shared()
    if before is None:
        pytest.skip("this system does not tell shared memory apart")
    with mmap.mmap(-1, SIZE) as block:  # shared, anonymous
        for start in range(0, SIZE, mmap.PAGESIZE):
            block[start] = 1
        alone = gauge.shared()
        ready, done = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            for start in range(0, SIZE, mmap.PAGESIZE):
                block[start]
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        halved = gauge.shared()
        os.write(done[1], b"x")
        os.waitpid(child, 0)

    assert alone is not None and halved is not None
    assert alone - before == pytest.approx(SIZE, abs=MIB)
    assert halved - before == pytest.approx(SIZE / 2, abs=MIB)
    assert HostGauge(rollup=Path("/nonexistent")).shared() is None
