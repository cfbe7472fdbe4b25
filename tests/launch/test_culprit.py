"""Which of several ranks that failed alike is blamed."""

from pathlib import Path

import pytest

from megatune.launch.culprit import find_culprit
from megatune.launch.verdict import RankExit

FAILED_SAVE = (
    "megatune: the checkpoint could not be saved; older ones are untouched. rank {rank}: [Errno 28] cannot write: "
    "No space left on device: '/runs/step-12/rank-0.safetensors'\n"
)


def ended(rank: int, words: str) -> RankExit:
    return RankExit(rank=rank, code=1, log=Path(f"rank-{rank}.log"), output=words)


@pytest.mark.parametrize("full", [0, 1, 2])
def test_of_a_save_that_failed_for_all_the_rank_with_the_full_disk_is_blamed(full: int) -> None:
    ends = [ended(rank, FAILED_SAVE.format(rank=full)) for rank in (1, 2, 0)]
    assert find_culprit(ends).rank == full


def test_an_error_that_the_first_rank_told_the_others_is_its_own() -> None:
    words = "megatune: rank 0 failed: ValueError: no such row\n"
    assert find_culprit([ended(1, words), ended(0, "ValueError: no such row\n" + words)]).rank == 0


def test_of_ranks_that_name_nobody_the_first_that_ended_is_blamed() -> None:
    assert find_culprit([ended(3, "ValueError: a\n"), ended(0, "ValueError: a\n")]).rank == 3
