"""`launch(rank_code, **asked)` starts a launcher process whose ranks run that code; `nvidia_smi` plays a driver."""

import os
import signal

import pytest
from launcher_process import FORKING_LAUNCHER, LAUNCHER, Launcher, is_alive


@pytest.fixture
def start_launcher(tmp_path):
    """`start_launcher(rank_code, asked, **how) -> Launcher`; what it leaves behind is killed."""
    started: list[Launcher] = []

    def start(rank_code: str, asked: dict[str, object], **how: object) -> Launcher:
        started.append(Launcher(tmp_path, rank_code, asked, **how))
        return started[-1]

    yield start
    for launcher in started:
        launcher.process.kill()
        launcher.process.wait()
        for pid in filter(is_alive, launcher.pids()):  # left only by a test that failed
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(params=[LAUNCHER, FORKING_LAUNCHER], ids=["interpreters", "forks"])
def launch(start_launcher, request):
    """`launch(rank_code, **asked) -> Launcher`: two ranks on this machine unless asked otherwise.

    What is promised of ranks holds for both ways of starting them.
    """

    def start(rank_code: str, *, popen: dict[str, object] | None = None, **asked: object) -> Launcher:
        given = {"num_ranks": 2, "grace_s": 1.0, **asked}
        return start_launcher(rank_code, given, code=request.param, **(popen or {}))

    return start


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Installs a stand-in for nvidia-smi that runs the given shell line."""

    def install(line: str) -> None:
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir()
        tool.write_text(f"#!/bin/sh\n{line}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    return install
