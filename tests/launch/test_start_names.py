"""Which starts are the same request once more."""

from pathlib import Path

import pytest

from megatune.launch.ranks import one_request
from megatune.launch.start_names import start_names

JOB = {"SLURM_JOB_ID": "7"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "a"}
SUBMITTED = {"MEGATUNE_REQUEST": "submitted"}


@pytest.mark.parametrize(
    ("first", "second", "is_again"),
    [
        (JOB, {**JOB, "SLURM_RESTART_COUNT": "1"}, True),
        (JOB, JOB, False),
        (JOB, {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"}, False),
        ({**JOB, **SUBMITTED}, {"SLURM_JOB_ID": "8", **SUBMITTED}, True),
        (TORCHRUN, {**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"}, True),
        (TORCHRUN, {**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "0"}, False),
        ({**JOB, **TORCHRUN}, {**JOB, "TORCHELASTIC_RUN_ID": "b", "SLURM_RESTART_COUNT": "1"}, True),
        (SUBMITTED, {}, False),
        (one_request(), one_request(), False),
    ],
    ids=[
        "job queued again",
        "second step of a job",
        "another job",
        "chain",
        "torchrun restart",
        "torchrun again",
        "torchrun in a job queued again",
        "nameless",
        "two commands",
    ],
)
def test_a_start_knows_that_an_earlier_one_had_the_same_request(
    tmp_path: Path, first: dict[str, str], second: dict[str, str], is_again: bool
) -> None:
    record = tmp_path / "begun"
    assert not start_names(first).was_begun(record)

    start_names(first).begin(record)

    assert start_names(second).was_begun(record) is is_again


def test_a_first_start_forgets_an_earlier_request_of_the_same_name(tmp_path: Path) -> None:
    """torchrun calls every run `none`: its first restart must not take the last run's word for this one's."""
    record, restart = tmp_path / "begun", {**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "1"}
    start_names(TORCHRUN).begin(record)

    start_names(restart).forget_others(record)
    assert start_names(restart).was_begun(record)
    start_names(TORCHRUN).forget_others(record)  # and is killed before it begins
    assert not start_names(restart).was_begun(record)


def test_a_start_without_a_name_leaves_the_record_of_others(tmp_path: Path) -> None:
    record = tmp_path / "begun"
    start_names(SUBMITTED).begin(record)
    start_names({}).begin(record)

    assert start_names(SUBMITTED).was_begun(record)
