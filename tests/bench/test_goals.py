"""The table of goals asks for cases that its suites have, and says n/a where no record has them."""

import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest

from megatune.bench.rounds import name_of
from megatune.bench.suite import SUITES, load_suite


@pytest.fixture(scope="module")
def goals() -> dict[str, Any]:
    """What benchmarks/goals.py defines."""
    return runpy.run_path(str(SUITES.parent / "goals.py"))


def test_every_goal_is_of_cases_that_its_suite_runs(goals):
    for goal in goals["GOALS"]:
        names = {name_of(case) for case in load_suite(goal.suite).expanded()}
        assert {f"{name} ({goal.group})" for name in (goal.case, goal.beside)} <= names
    asked = {(goal.suite, goal.group) for goal in goals["GOALS"]}
    for suite in ("mixed", "mixed-135m", "peers", "peers-135m", "tensor-parallel-135m"):
        assert {(suite, f"precision={precision}") for precision in ("fp32", "bf16")} <= asked


def test_a_goal_without_a_record_is_not_measured(goals, tmp_path: Path):
    goal = goals["GOALS"][0]
    assert goals["row"](goal, tmp_path).endswith("| n/a | n/a | not measured |")


def test_the_newest_whole_record_counts_however_old_its_file_is(goals, tmp_path: Path):
    for name, time, cut_off in (
        ("new", "2026-02-01T00:00:00+00:00", None),
        ("old", "2026-01-01T00:00:00+00:00", None),
        ("cut", "2026-03-01T00:00:00+00:00", "SIGTERM"),
    ):
        path = tmp_path / f"s-{name}.json"
        path.write_text(json.dumps({"suite": "s", "name": name, "time": time, "cut_off": cut_off}))
    os.utime(tmp_path / "s-new.json", (0, 0))
    assert goals["newest"](tmp_path, "s")["name"] == "new"
    assert goals["newest"](tmp_path, "t") is None
