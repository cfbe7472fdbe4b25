"""What asks a tune or a search to stop."""

import os
import signal
import time

import pytest

from megatune.tune import trial
from megatune.tune.trial import StopSignals


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
)
def test_a_stop_signal_asks_to_stop_and_its_handler_comes_back(number: signal.Signals):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked and not stop.at_once
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_an_ignored_signal_stays_ignored(number: signal.Signals):
    """As SIGHUP under nohup, and SIGINT of a job in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), number)
            assert not stop.asked
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_one_ctrl_c_that_comes_twice_is_one(monkeypatch: pytest.MonkeyPatch):
    """From the terminal, and passed on by `uv run`."""
    with StopSignals() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked and not stop.at_once
        monkeypatch.setattr(trial, "REPEAT_S", 0.0)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.at_once
