"""Asking squeue and sacct: states, reasons, restarts, and answers that are none."""

import pytest
from fake_slurm import FakeSlurm, account_line, queue_line, said

from megatune.errors import SubmitError
from megatune.launch.slurm.accounting import parse_accounts
from megatune.launch.slurm.history import SubmittedJob
from megatune.launch.slurm.jobs import JobReport, look_up
from megatune.launch.slurm.queue import ask_queue, parse_queue
from megatune.launch.slurm.reasons import reason_in_words
from megatune.launch.slurm.states import Stage, job_state

NO_ACCOUNTS = said(err="Slurm accounting storage is disabled\n", code=1)
UNKNOWN_JOB = said(err="slurm_load_jobs error: Invalid job id specified\n", code=1)
CONTROLLER_DOWN = said(
    err="slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", code=1
)


def job(job_id: str, cluster: str | None = None) -> SubmittedJob:
    return SubmittedJob(job_id=job_id, cluster=cluster, submitted_at="2026-11-23T09:00:00Z")


def report(slurm: FakeSlurm, job_id: str = "7") -> JobReport:
    return look_up([job(job_id)], slurm)[job(job_id)]


def test_a_running_job_is_reported_with_its_nodes_and_the_time_left():
    slurm = FakeSlurm(
        squeue=said(queue_line("7", "RUNNING", nodes="n[1-4]", num_nodes=4, left="1-00:10:05")),
        sacct=said(account_line("7", "RUNNING", end="Unknown")),
    )

    found = report(slurm)

    assert found.state.name == "RUNNING"
    assert (found.nodes, found.num_nodes, found.time_left_s) == ("n[1-4]", 4, 87005)
    assert found.time_limit_s == 7200
    assert found.is_active
    assert not found.has_failed
    assert found.restarts == 0


@pytest.mark.parametrize("state", ["NODE_FAIL", "CANCELLED by 1000", "TIMEOUT", "PREEMPTED", "OUT_OF_MEMORY"])
def test_a_job_that_did_not_end_well_has_failed_although_its_exit_code_is_zero(state: str):
    found = report(FakeSlurm(squeue=UNKNOWN_JOB, sacct=said(account_line("7", state, code="0:0"))))

    assert found.has_failed
    assert found.exit_code == "0:0"
    assert found.ended_at


def test_a_completed_job_whose_last_step_failed_has_failed():
    accounts = account_line("7", "COMPLETED") + account_line("7.batch", "COMPLETED")
    accounts += account_line("7.0", "FAILED", code="16:0")

    found = report(FakeSlurm(squeue=UNKNOWN_JOB, sacct=said(accounts)))

    assert found.has_failed
    assert found.failed_step == "7.0 FAILED (16:0)"


def test_a_step_that_was_tried_again_is_no_failure():
    accounts = account_line("7", "COMPLETED") + account_line("7.0", "FAILED", code="98:0")
    accounts += account_line("7.1", "COMPLETED") + account_line("7.extern", "FAILED")

    assert not report(FakeSlurm(squeue=UNKNOWN_JOB, sacct=said(accounts))).has_failed


def test_earlier_starts_of_a_requeued_job_are_counted_as_restarts():
    earlier = account_line("7", "NODE_FAIL") + account_line("7", "PREEMPTED")
    pending = account_line("7", "PENDING", start="Unknown", end="Unknown", nodes="None assigned")
    slurm = FakeSlurm(
        squeue=said(queue_line("7", "PENDING", reason="BeginTime")), sacct=said(earlier + pending)
    )

    found = report(slurm)

    assert found.restarts == 2
    assert found.is_active
    assert "start time has not come" in (found.reason_text or "")
    assert ["--duplicates" in command for command in slurm.commands("sacct")] == [True]


def test_the_queue_is_believed_over_accounts_that_lag_behind():
    slurm = FakeSlurm(squeue=said(queue_line("7", "RUNNING")), sacct=said(account_line("7", "PREEMPTED")))

    found = report(slurm)

    assert (found.state.name, found.restarts, found.exit_code) == ("RUNNING", 1, None)


def test_without_accounts_a_forgotten_job_is_unknown_and_the_reason_is_said():
    found = report(FakeSlurm(squeue=UNKNOWN_JOB, sacct=NO_ACCOUNTS))

    assert found.state is None
    assert not found.is_active
    assert not found.has_failed
    assert "keeps no accounts" in found.notes[0]


def test_without_accounts_a_job_that_ended_minutes_ago_has_its_state_from_the_queue():
    slurm = FakeSlurm(squeue=said(queue_line("7", "FAILED", reason="NonZeroExitCode")), sacct=NO_ACCOUNTS)

    assert report(slurm).has_failed


def test_a_controller_that_is_down_is_noted_and_accounts_still_answer():
    slurm = FakeSlurm(squeue=CONTROLLER_DOWN, sacct=NO_ACCOUNTS)

    found = report(slurm)

    assert found.state is None
    assert any("Unable to contact slurm controller" in note for note in found.notes)
    down = FakeSlurm(squeue=CONTROLLER_DOWN, sacct=said(account_line("7", "COMPLETED")))
    assert report(down).state.name == "COMPLETED"


def test_a_program_that_gives_no_answer_in_time_is_noted():
    def hang(_command: object) -> None:
        raise SubmitError("squeue gave no answer in 60 s")

    found = report(FakeSlurm(squeue=hang, sacct=said(account_line("7", "RUNNING", end="Unknown"))))

    assert found.is_active


@pytest.mark.parametrize(
    "text",
    [
        "7",
        "garbage\n",
        "7\x1fRUNNING\n",
        "\x1f" * 6 + "\n",
        "x\x1fRUNNING\x1fNone\x1f\x1f1\x1f1:00\x1f1:00\n",
    ],
)
def test_an_answer_of_squeue_that_is_none_is_quoted_and_never_a_traceback(text: str):
    with pytest.raises(SubmitError, match="squeue gave an answer that megatune cannot read"):
        parse_queue(text)


@pytest.mark.parametrize("text", ["garbage\n", "7|RUNNING\n", "<html>502</html>\n", "7|||||||\n"])
def test_an_answer_of_sacct_that_is_none_is_quoted_and_never_a_traceback(text: str):
    with pytest.raises(SubmitError, match="sacct gave an answer that megatune cannot read"):
        parse_accounts(text)


def test_a_job_of_a_federation_is_asked_for_on_its_cluster():
    answer = said("CLUSTER: east\n" + queue_line("7", "RUNNING"))
    slurm = FakeSlurm(squeue=answer, sacct=said())

    found = look_up([job("7", "east"), job("8")], slurm)

    assert found[job("7", "east")].state.name == "RUNNING"
    assert [command for command in slurm.commands("squeue") if "--clusters=east" in command]
    assert ["--jobs=8" in command for command in slurm.commands("squeue")] == [False, True]


def test_a_task_of_an_array_is_found_by_its_own_id():
    slurm = FakeSlurm(
        squeue=said(queue_line("12_3", "PENDING", reason="JobArrayTaskLimit")),
        sacct=said(account_line("12_[4-5%2]", "PENDING") + account_line("12_3", "PENDING", end="Unknown")),
    )

    assert "array_parallelism" in (report(slurm, "12_3").reason_text or "")


def test_a_heterogeneous_job_is_named_as_not_supported():
    found = report(FakeSlurm(squeue=UNKNOWN_JOB, sacct=said()), "12+1")

    assert any("heterogeneous" in note for note in found.notes)


def test_one_question_covers_all_jobs_of_a_cluster():
    slurm = FakeSlurm(squeue=said(), sacct=said())

    look_up([job("7"), job("8")], slurm)

    assert len(slurm.asked) == 2
    assert "--jobs=7,8" in slurm.commands("squeue")[0]


def test_squeue_failing_for_another_reason_than_age_is_an_error():
    with pytest.raises(SubmitError, match="connect failure"):
        ask_queue(["7"], None, FakeSlurm(squeue=CONTROLLER_DOWN))


def test_a_state_of_a_newer_slurm_keeps_its_name_and_claims_nothing():
    found = job_state("HIBERNATING")

    assert (found.name, found.stage) == ("HIBERNATING", Stage.UNKNOWN)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "higher priority"),
        ("Resources", "nodes are free"),
        ("Dependency", "job before it"),
        ("DependencyNeverSatisfied", "never start"),
        ("QOSMaxJobsPerUserLimit", "as many jobs as your limits allow"),
        ("QOSMaxGRESPerUser", "your running jobs hold"),
        ("QOSMaxWallDurationPerJobLimit", "slurm.time"),
        ("AssocGrpGRES", "together"),
        ("AssocGrpCPUMinutesLimit", "compute time"),
        ("AssocMaxNodePerJobLimit", "one job may not ask"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "UnavailableNodes:n[1-2]"),
        ("BeginTime", "start time"),
        ("JobHeldUser", "scontrol release"),
        ("JobHeldAdmin", "administrator"),
        ("PartitionTimeLimit", "lower slurm.time"),
        ("PartitionNodeLimit", "lower slurm.nodes"),
        ("InvalidAccount", "slurm.account"),
        ("BadConstraints", "slurm.constraint"),
        ("SomethingNew", "'SomethingNew'"),
    ],
)
def test_a_reason_is_told_in_words(reason: str, words: str):
    assert words in (reason_in_words(reason) or "")


def test_no_reason_is_none():
    assert reason_in_words("None") is None
    assert reason_in_words(None) is None
