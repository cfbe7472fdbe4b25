"""A save that returned is never lost, whenever ranks are killed, and every start can save again."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kill_trials import Outcome, left_after_a_start, run_trials
from worlds import TestWorld

pytestmark = [pytest.mark.world, pytest.mark.timeout(1200)]
TRIALS, AT_ONCE = {"Writer": 200, "Behind": 100}, 20


@pytest.fixture(scope="module")
def harness() -> Iterator[TestWorld]:
    """A process that has imported torch and has no threads: it forks the ranks of every trial."""
    world = TestWorld(1)
    yield world
    world.close()


def trials(harness: TestWorld, folder: Path, writer: str) -> Outcome:
    """Up to as many kills as `TRIALS` says, one start after another in the same folder, or up to the first problem."""
    outcome = Outcome()
    for seed in range(TRIALS.get(writer, 200) // AT_ONCE):
        outcome += harness.run(run_trials, str(folder), writer, AT_ONCE, seed)[0]
        if outcome.problems:
            break
    print(f"\n{writer}: {outcome}")
    return outcome


@pytest.mark.parametrize("writer", ["Writer", "Behind"])
def test_no_save_that_returned_is_lost_in_hundreds_of_kills(
    harness: TestWorld, tmp_path: Path, writer: str
) -> None:
    outcome = trials(harness, tmp_path, writer)

    assert outcome.problems == []
    assert outcome.num_trials == TRIALS[writer]
    assert outcome.num_saves > TRIALS[writer] / 4, "starts save again after every kill"
    assert outcome.moments["while writing"] + outcome.moments["while pruning"] > TRIALS[writer] / 10
    left = left_after_a_start(str(tmp_path))
    steps = [name for name in left if re.fullmatch(r"checkpoints/step-\d{8}", name)]
    assert sorted(set(left) - set(steps)) == ["best", "checkpoints", "latest"], "what was cut off is gone"
    assert 2 <= len(steps) <= 3, "the two newest, and the best"


@pytest.mark.parametrize("writer", ["LatestFirst", "PrunesFirst", "BehindUnfinished", "BehindUncopied"])
def test_the_same_trials_find_what_is_wrong_with_a_writer(
    harness: TestWorld, tmp_path: Path, writer: str
) -> None:
    assert trials(harness, tmp_path, writer).problems
