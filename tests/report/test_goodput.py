"""Goodput of event logs whose answer was worked out by hand."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from megatune.report.goodput import goodput

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def at(second: float) -> str:
    return (BEGIN + timedelta(seconds=second)).isoformat().replace("+00:00", "Z")


def entry(event: str, second: float, **values: Any) -> dict[str, Any]:
    return {"event": event, "time": at(second), **values}


def steps(numbers: range, first_end: float, seconds: float) -> list[dict[str, Any]]:
    return [
        entry("step", first_end + seconds * index, step=number, step_seconds=seconds, skipped=False)
        for index, number in enumerate(numbers)
    ]


# A start begins at 0: 5 s to meet, 15 s to load, an evaluation of 10 s, steps 1 to 4 of 10 s with a save of
# 5 s after the second. It is killed at 75. The second begins at 100, and takes steps 3 and 4 away.
KILLED = [
    entry("run", 20, startup_seconds=5.0, load_seconds=15.0),
    entry("eval", 30, step=0, seconds=10.0),
    *steps(range(1, 3), 40, 10.0),
    entry("save", 55, step=2, seconds=5.0),
    # steps 3 and 4 ended at 65 and 75
    entry("run", 120, startup_seconds=5.0, load_seconds=15.0),
    entry("lost", 125, step=2, steps=2, seconds=20.0, until=at(75)),
    entry("resume", 125, step=2, seconds=5.0),
    *steps(range(3, 7), 135, 10.0),
    entry("save", 170, step=6, seconds=5.0),
    entry("stop", 170, step=6, seconds=50.0),
]


def test_a_run_that_was_killed_has_the_goodput_worked_out_by_hand() -> None:
    found = goodput(KILLED)

    assert found is not None
    assert found.elapsed_s == 170
    assert found.parts() == pytest.approx(
        {
            "train": 60.0,
            "start-up": 10.0,
            "load": 35.0,
            "eval": 10.0,
            "save": 10.0,
            "lost": 20.0,
            "between starts": 25.0,
            "other": 0.0,
        }
    )
    assert found.effective_ratio == pytest.approx(60 / 170)
    assert (found.restarts, found.lost_steps) == (1, 2)


def test_the_parts_add_up_to_the_elapsed_time() -> None:
    found = goodput(KILLED)
    assert found is not None
    assert sum(found.parts().values()) == pytest.approx(found.elapsed_s)


def test_a_save_behind_training_costs_what_training_waited_for_it() -> None:
    # The start takes 10 s. The save of step 2 takes from 30 to 58, and training waits 2 s of it; steps 3 and
    # 4 end at 42 and 52. A save of step 4 waits 6 s for the one before and 2 s more.
    entries = [
        entry("run", 10, startup_seconds=4.0, load_seconds=6.0),
        *steps(range(1, 3), 20, 10.0),
        *steps(range(3, 5), 42, 10.0),
        entry("save", 58, step=2, seconds=26.0, blocked_seconds=8.0),
        *steps(range(5, 6), 70, 10.0),
        entry("save", 70, step=4, seconds=10.0, blocked_seconds=2.0),
    ]
    found = goodput(entries)

    assert found is not None
    assert (found.elapsed_s, found.train_s, found.save_s) == (70.0, 50.0, 10.0)
    assert found.other_s == 0.0
    assert found.effective_ratio == pytest.approx(50 / 70)


def test_a_skipped_step_is_lost_time() -> None:
    entries = [entry("run", 10, startup_seconds=4.0, load_seconds=6.0), *steps(range(1, 4), 20, 10.0)]
    entries[2]["skipped"] = True
    found = goodput(entries)
    assert found is not None
    assert (found.train_s, found.lost_s, found.elapsed_s) == (20.0, 10.0, 40.0)


def test_a_rollback_is_lost_time_and_no_gap_between_starts() -> None:
    entries = [
        entry("run", 0, startup_seconds=0.0, load_seconds=0.0),
        *steps(range(1, 3), 10, 10.0),
        entry("lost", 50, step=2, steps=3, seconds=30.0, until=at(50)),
        *steps(range(3, 4), 60, 10.0),
    ]
    found = goodput(entries)
    assert found is not None
    assert (found.train_s, found.lost_s, found.lost_steps, found.down_s) == (30.0, 30.0, 3, 0.0)


def test_without_a_start_there_is_none() -> None:
    assert goodput([]) is None
    assert goodput(steps(range(1, 3), 10, 10.0)) is None
