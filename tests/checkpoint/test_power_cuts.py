"""A save that returned is on the disk: what was not synced may be lost at any moment, and nothing is missed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from power_cuts import DROPS, first_loss, record_saves
from worlds import TestWorld

pytestmark = pytest.mark.world


@pytest.fixture(scope="module")
def harness() -> Iterator[TestWorld]:
    """A process that has imported torch and has no threads: it forks the ranks that save."""
    world = TestWorld(1)
    yield world
    world.close()


@pytest.mark.parametrize("writer", ["Writer", "Behind"])
def test_a_power_cut_at_any_moment_loses_no_save_that_returned(
    harness: TestWorld, tmp_path: Path, writer: str
) -> None:
    harness.run(record_saves, str(tmp_path), writer, "nothing")

    lost, num_states = harness.run(first_loss, str(tmp_path), writer)[0]

    print(f"\n{writer}: {num_states} states of the disk")
    assert lost is None
    assert num_states > 80


@pytest.mark.parametrize("drop", [name for name in DROPS if name != "nothing"])
def test_a_sync_that_is_left_out_is_found(harness: TestWorld, tmp_path: Path, drop: str) -> None:
    harness.run(record_saves, str(tmp_path), "Writer", drop)

    lost, _ = harness.run(first_loss, str(tmp_path), "Writer")[0]

    assert lost is not None
