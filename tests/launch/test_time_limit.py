import threading

import pytest

from megatune.errors import SubmitError
from megatune.launch.slurm.command import Answer
from megatune.launch.slurm_ranks import SlurmJob
from megatune.launch.time_limit import JobEnd

NOW_S = 1_000_000.0


class Squeue:
    """Answers with the next of `answers`, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __call__(self, command):
        self.asked.append(list(command))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def said(text, code=0, err=""):
    return Answer(code=code, out=text, err=err)


class Clock:
    def __init__(self):
        self.now_s = NOW_S

    def __call__(self):
        return self.now_s


def job_end(squeue, clock, *, end_time_s=None, job_id="42"):
    job = SlurmJob(job_id=job_id, restart_count=0, end_time_s=end_time_s)
    return JobEnd(job, call=squeue, clock=clock)


def look(end):
    end.seconds_left()
    for thread in threading.enumerate():
        if thread.name == "time limit":
            thread.join()  # squeue has answered
    return end.seconds_left()


def test_squeue_is_asked_for_the_time_left():
    squeue = Squeue(said("1:40\n"))
    assert look(job_end(squeue, Clock())) == 100
    assert squeue.asked == [["squeue", "--noheader", "--jobs=42", "--format=%L"]]


def test_a_limit_that_was_extended_is_seen_minutes_later():
    clock, squeue = Clock(), Squeue(said("10:00"), said("1:00:00"))
    end = job_end(squeue, clock)
    assert look(end) == 600

    clock.now_s += 100
    assert look(end) == 500
    assert len(squeue.asked) == 1

    clock.now_s += 200
    assert look(end) == 3600


def test_the_end_in_the_environment_holds_until_squeue_is_asked():
    clock, squeue = Clock(), Squeue(said("9:00"))
    end = job_end(squeue, clock, end_time_s=NOW_S + 50)
    assert look(end) == 50
    assert squeue.asked == []

    clock.now_s += 300
    assert look(end) == 540


def test_a_job_without_limit_or_outside_slurm_has_no_end():
    assert look(job_end(Squeue(said("UNLIMITED\n")), Clock())) is None
    assert look(JobEnd(None, call=Squeue(), clock=Clock())) is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (said("", code=1, err="squeue: error: one\nsqueue: fatal: no socket\n"), "squeue: fatal: no socket"),
        (said("garbage"), "squeue gave 'garbage' for the time that job 42 has left"),
        (SubmitError("there is no squeue on this machine"), "no squeue"),
    ],
)
def test_an_end_that_cannot_be_read_is_told_once_and_the_known_one_stays(answer, words):
    clock, squeue = Clock(), Squeue(answer, answer)
    end = job_end(squeue, clock, end_time_s=NOW_S + 1000)

    for _ in range(2):
        clock.now_s += 300
        look(end)

    assert words in (end.take_remark() or "")
    assert end.take_remark() is None
    assert end.seconds_left() == 400


def test_without_a_job_number_only_the_environment_is_known():
    assert look(job_end(Squeue(), Clock(), end_time_s=NOW_S + 7, job_id=None)) == 7
