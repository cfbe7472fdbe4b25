"""One rank acts for all without leaving any behind, and no group waits longer than the user allows."""

import pytest
from world_cases import first_rank_answers, first_rank_failures, group_timeouts
from worlds import Worlds

from megatune.engine.world import single_world

pytestmark = pytest.mark.world


def test_all_ranks_get_the_answer_of_the_first_and_no_other_acts(worlds: Worlds) -> None:
    first, second = worlds.run(2, first_rank_answers)

    assert first == [("from", 0), None, [0, 0]]
    assert second == [("from", 0), None, []]


def test_a_failure_of_the_first_rank_is_raised_on_all_with_its_words(worlds: Worlds) -> None:
    first, second = worlds.run(2, first_rank_failures)

    assert first["checkpoint"] == second["checkpoint"] == ("CheckpointError", "the disk is gone")
    assert first["config"][0] == "ConfigError"
    assert second["config"] == ("UserError", first["config"][1]), (
        "still the user's mistake, with all problems"
    )
    assert first["other"] == ("KeyError", "'lost'")
    assert second["other"] == ("MegatuneError", "rank 0 failed: KeyError: 'lost'")


def test_one_process_acts_alone() -> None:
    assert single_world().first_rank(lambda: 5) == 5


def test_tensor_and_data_groups_wait_as_long_as_the_user_said(worlds: Worlds) -> None:
    for timeouts in worlds.run(4, group_timeouts, 77.0):
        assert timeouts == [77.0, 77.0]
