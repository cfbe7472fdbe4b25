"""`run_ranks`: stopping it, killing it."""

import signal
import time

import pytest
from launcher_process import SAVING_RANK, STUBBORN_RANK, is_alive, wait_until


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (signal.SIGINT, "SIGINT"),
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGHUP, "SIGTERM"),
        (signal.SIGUSR1, "SIGUSR2"),
        (signal.SIGUSR2, "SIGUSR2"),
    ],
)
def test_a_stop_reaches_every_rank_once_and_the_job_ends_saved(launch, sent, received):
    launcher = launch(SAVING_RANK)
    launcher.wait_until_ready(2)
    launcher.process.send_signal(sent)
    launcher.finish()
    assert launcher.process.returncode == 75
    assert [(launcher.folder / f"saved-{rank}").read_text() for rank in range(2)] == [received] * 2


def test_a_second_stop_kills(launch):
    launcher = launch(STUBBORN_RANK)
    launcher.wait_until_ready(2)
    launcher.process.send_signal(signal.SIGINT)
    time.sleep(1.3)
    assert launcher.process.poll() is None
    launcher.process.send_signal(signal.SIGINT)
    launcher.finish()
    assert launcher.process.returncode == 1
    assert "killed by a second signal (SIGINT)" in launcher.result()["failure_text"]
    assert not any(is_alive(pid) for pid in launcher.pids())


def test_the_same_stop_delivered_twice_at_once_counts_once(launch):
    launcher = launch(
        """
def slowly(signum, frame):
    time.sleep(0.5)
    save_and_stop(signum, frame)
signal.signal(signal.SIGINT, slowly)
Path(f"ready-{rank}").touch()
sleep_through()
"""
    )
    launcher.wait_until_ready(2)
    launcher.process.send_signal(signal.SIGINT)
    time.sleep(0.25)
    launcher.process.send_signal(signal.SIGINT)
    launcher.finish()
    assert launcher.process.returncode == 75


def test_a_stop_before_a_rank_can_save_is_not_called_saved(launch):
    launcher = launch("Path(f'ready-{rank}').touch()\nsleep_through()")
    launcher.wait_until_ready(2)
    launcher.process.send_signal(signal.SIGTERM)
    launcher.finish()
    assert launcher.process.returncode == 1
    assert "stopped by SIGTERM, and not every rank could save" in launcher.result()["failure_text"]


def test_a_killed_launcher_leaves_no_rank_behind(launch):
    launcher = launch(STUBBORN_RANK, num_ranks=3)
    launcher.wait_until_ready(3)
    launcher.process.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in launcher.pids()), timeout_s=5)
