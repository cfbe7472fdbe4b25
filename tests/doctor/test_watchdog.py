"""The end of a process that hangs."""

import signal
import subprocess
import sys

HANGS = """
import ctypes, sys, time
from megatune.doctor.watchdog import Watchdog
watchdog = Watchdog(1.5)
watchdog.say_at_end(lambda: print("it was the disk", flush=True))
{hang}
"""


def run(hang: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HANGS.format(hang=hang)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_process_that_hangs_says_where_and_ends():
    done = run("time.sleep(100)")

    assert done.returncode == 1
    assert done.stdout == "it was the disk\n"
    assert "time is over" in done.stderr and "<string>" in done.stderr


def test_one_that_keeps_the_interpreter_is_ended_by_the_kernel():
    done = run("ctypes.PyDLL(None).sleep(100)")  # PyDLL: no other Python code can run meanwhile

    assert done.returncode == -signal.SIGALRM


def test_one_that_is_called_off_ends_nothing():
    done = run("watchdog.stop(); time.sleep(1.6); print('alive')")

    assert (done.returncode, done.stdout) == (0, "alive\n")
