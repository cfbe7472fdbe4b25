"""Cancelling: what is asked of Slurm for each job, in which order, and what keeps a job from coming back."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, queue_line, said

from megatune.errors import SubmitError
from megatune.launch.slurm.cancel import cancel_jobs, is_cancelled
from megatune.launch.slurm.command import Answer
from megatune.launch.slurm.history import SubmittedJob


def jobs(*job_ids: str, cluster: str | None = None) -> list[SubmittedJob]:
    return [
        SubmittedJob(job_id=name, cluster=cluster, submitted_at="2026-11-23T09:00:00Z") for name in job_ids
    ]


def queue(**states: str) -> Answer:
    return said("".join(queue_line(name.lstrip("j"), state) for name, state in states.items()))


def test_a_running_job_is_told_to_save_and_is_not_queued_again(tmp_path: Path):
    slurm = FakeSlurm(squeue=queue(j7="RUNNING"))

    done = cancel_jobs(tmp_path, jobs("7"), now=False, call=slurm)

    assert slurm.commands("scontrol") == [["update", "JobId=7", "Requeue=0"]]
    assert slurm.commands("scancel") == [["--signal=TERM", "7"]]
    assert is_cancelled(tmp_path, "7")
    assert not is_cancelled(tmp_path, "77")
    assert "save and stop" in done[0].done


def test_waiting_jobs_of_a_chain_leave_before_the_running_one_ends(tmp_path: Path):
    left: list[str] = []

    def squeue(_command: Sequence[str]) -> Answer:
        states = {"j7": "RUNNING", "j8": "PENDING", "j9": "PENDING"}
        return queue(**{name: state for name, state in states.items() if name not in left})

    def scancel(command: Sequence[str]) -> Answer:
        left.append(f"j{command[-1]}")
        return said()

    slurm = FakeSlurm(squeue=squeue, scancel=scancel)

    cancel_jobs(tmp_path, jobs("7", "8", "9"), now=False, call=slurm)

    assert [command[-1] for command in slurm.commands("scancel")] == ["8", "9", "7"]
    assert slurm.commands("scancel")[0] == ["--state=PENDING", "8"]


def test_a_job_that_starts_while_it_is_cancelled_still_saves(tmp_path: Path):
    answers = iter(["PENDING", "RUNNING"])
    slurm = FakeSlurm(squeue=lambda _: queue(j7=next(answers)))

    cancel_jobs(tmp_path, jobs("7"), now=False, call=slurm)

    assert slurm.commands("scancel") == [["--state=PENDING", "7"], ["--signal=TERM", "7"]]


def test_now_cancels_without_a_signal_to_save(tmp_path: Path):
    slurm = FakeSlurm(squeue=queue(j7="RUNNING", j8="PENDING"))

    done = cancel_jobs(tmp_path, jobs("7", "8"), now=True, call=slurm)

    assert slurm.commands("scancel") == [["8"], ["7"]]
    assert {entry.done for entry in done} == {"cancelled at once"}
    assert is_cancelled(tmp_path, "7"), "its batch script may still be asked to queue it again"


def test_jobs_that_have_ended_are_left_alone_and_named(tmp_path: Path):
    slurm = FakeSlurm(squeue=queue(j7="COMPLETED"))

    done = cancel_jobs(tmp_path, jobs("7"), now=False, call=slurm)

    assert slurm.commands("scancel") == []
    assert [(entry.job_id, entry.done, entry.was_active) for entry in done] == [("7", "had ended", False)]


def test_a_job_that_ends_meanwhile_is_no_error(tmp_path: Path):
    refused = said(
        err="scancel: error: Kill job error on job id 7: Job/step already completing or completed", code=1
    )
    slurm = FakeSlurm(squeue=queue(j7="RUNNING"), scancel=refused)

    cancel_jobs(tmp_path, jobs("7"), now=False, call=slurm)


def test_a_refused_cancel_names_slurms_reason_and_the_other_jobs_are_cancelled_all_the_same(tmp_path: Path):
    def scancel(command: Sequence[str]) -> Answer:
        refused = said(err="scancel: error: Kill job error on job id 8: Access/permission denied", code=1)
        return refused if command[-1] == "8" else said()

    slurm = FakeSlurm(squeue=queue(j7="RUNNING", j8="RUNNING"), scancel=scancel)

    with pytest.raises(SubmitError, match="permission denied"):
        cancel_jobs(tmp_path, jobs("8", "7"), now=False, call=slurm)
    assert [command[-1] for command in slurm.commands("scancel")] == ["8", "7"]


def test_a_job_of_a_federation_is_cancelled_on_its_cluster(tmp_path: Path):
    slurm = FakeSlurm(squeue=queue(j7="RUNNING"))

    cancel_jobs(tmp_path, jobs("7", cluster="east"), now=False, call=slurm)

    assert all(command[1] == "--clusters=east" for command in slurm.asked if command[0] != "squeue")


def test_a_controller_that_is_down_is_an_error_and_nothing_is_claimed(tmp_path: Path):
    down = said(err="slurm_load_jobs error: Unable to contact slurm controller", code=1)

    with pytest.raises(SubmitError, match="Unable to contact"):
        cancel_jobs(tmp_path, jobs("7"), now=False, call=FakeSlurm(squeue=down))
    assert not is_cancelled(tmp_path, "7")
