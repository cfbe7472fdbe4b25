"""When a rank stops: signals, and a job about to end."""

import os
import signal

import pytest

from megatune.train.stopping import Stopping, StopRequest


class Left:
    """The seconds that the job has left, as the test says."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds

    def __call__(self) -> float | None:
        return self.seconds


def stopping(left: Left, **durations: float) -> Stopping:
    found = Stopping(StopRequest(), left, unmeasured_save_s=60.0)
    for name, seconds in durations.items():
        getattr(found, name)(seconds)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_asks_to_stop_and_the_first_one_says_why(number: signal.Signals) -> None:
    request = StopRequest()
    restore = request.listen()
    try:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        restore()

    assert (Stopping(request).reason() or "").startswith(f"asked to stop by {number.name}")


def test_what_had_the_signals_before_has_them_again() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    StopRequest().listen()()
    assert signal.getsignal(signal.SIGUSR2) is before


def test_outside_a_job_nothing_stops() -> None:
    assert Stopping(StopRequest()).reason() is None
    assert stopping(Left(None), saved=1e6).reason() is None


# A save of 96 s and steps of 10 s need 1.5 x 96 + 2 x 10 + 10 = 174 s.
@pytest.mark.parametrize(("left_s", "stops"), [(175, False), (173, True), (0, True), (-5, True)])
def test_the_run_stops_while_a_save_still_fits(left_s: float, stops: bool) -> None:
    reason = stopping(Left(left_s), saved=96.0, stepped=10.0).reason()
    assert reason == (f"the job ends in {left_s} s; saving takes 96 s" if stops else None)


# 60 s are kept for the save, 2 x 10 for steps, and 10.
@pytest.mark.parametrize(("left_s", "stops"), [(91, False), (89, True)])
def test_before_a_save_was_measured_the_signal_delay_is_kept_free(left_s: float, stops: bool) -> None:
    reason = stopping(Left(left_s), stepped=10.0).reason()
    assert (reason is not None) == stops
    assert reason is None or "60 s are kept for one (slurm.signal_delay_s)" in reason


def test_a_save_under_way_is_given_the_time_to_end_before_the_last_one() -> None:
    # 1.5 x 96 s twice, 2 x 10 and 10.
    for left_s, stops in ((319, False), (317, True)):
        found = stopping(Left(left_s), saved=96.0, stepped=10.0)
        found.save_began()
        assert (found.reason() is not None) == stops

    ended = stopping(Left(317), saved=96.0, stepped=10.0)
    ended.save_began()
    ended.saved(96.0)
    assert ended.reason() is None


def test_the_slowest_of_the_last_steps_counts_and_older_ones_do_not() -> None:
    found = stopping(Left(1000), saved=0.0, stepped=1e6)
    assert found.reason() is not None

    forgotten = stopping(Left(1000), saved=0.0, stepped=1e6)
    for _ in range(10):
        forgotten.stepped(1.0)
    assert forgotten.reason() is None


def test_an_evaluation_that_does_not_fit_is_a_reason_only_before_one() -> None:
    left = Left(300)
    found = stopping(left, saved=20.0, evaluated=280.0)

    assert found.reason() is None
    assert (
        found.reason(before_evaluation=True)
        == "the job ends in 300 s; evaluating takes 280 s, saving takes 20 s"
    )


def test_a_reason_stays_because_all_ranks_have_acted_on_it() -> None:
    left = Left(5)
    found = stopping(left)
    reason = found.reason()
    left.seconds = 1e6

    assert reason is not None
    assert found.reason() == reason


def test_durations_are_learnt_from_earlier_starts() -> None:
    found = stopping(Left(1000))
    found.learn([{"event": "save", "seconds": 5.0}, {"event": "step"}, {"event": "eval", "seconds": 2000.0}])

    assert found.reason() is None
    assert "evaluating takes 2000 s, saving takes 5 s" in (found.reason(before_evaluation=True) or "")
