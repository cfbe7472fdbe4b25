"""`launch(rank_code, **asked)` starts a launcher process whose ranks run that code."""

import os
import signal

import pytest
from launcher_process import Launcher, is_alive


@pytest.fixture
def launch(tmp_path):
    started: list[Launcher] = []

    def start(rank_code: str, *, popen: dict[str, object] | None = None, **asked: object) -> Launcher:
        started.append(Launcher(tmp_path, rank_code, {"num_ranks": 2, **asked}, **(popen or {})))
        return started[-1]

    yield start
    for launcher in started:
        launcher.process.kill()
        launcher.process.wait()
        for pid in filter(is_alive, launcher.pids()):  # left only by a test that failed
            os.kill(pid, signal.SIGKILL)
