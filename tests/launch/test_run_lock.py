"""One training at a time in a run folder, and nothing to remove after one that was killed."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatune.errors import ConfigError
from megatune.launch.run_folder import RunFolder
from megatune.launch.run_lock import training_alone

HOLD = """
import sys
from pathlib import Path
from megatune.launch.run_folder import RunFolder
from megatune.launch.run_lock import training_alone
with training_alone(RunFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process


def test_a_second_training_is_refused_with_who_holds_the_folder(tmp_path: Path) -> None:
    said: list[str] = []
    with held(tmp_path) as other:
        words = (
            rf"{tmp_path} is being trained in by process {other.pid} on {socket.gethostname()}\. Let that end"
        )
        alone = training_alone(RunFolder(tmp_path), waits_s=(0.3, 60), say=said.append)
        with pytest.raises(ConfigError, match=words), alone:
            pass
    assert said == [
        f"{tmp_path} is in use by process {other.pid} on {socket.gethostname()}; waiting 0 s for its end"
    ]


def test_a_killed_training_holds_nothing(tmp_path: Path) -> None:
    with held(tmp_path) as other:
        os.kill(other.pid, signal.SIGKILL)
    with training_alone(RunFolder(tmp_path), waits_s=(0, 0)):
        assert RunFolder(tmp_path).lock.read_text() == f"{socket.gethostname()} {os.getpid()}\n"


def test_the_end_of_one_on_another_host_is_waited_for(tmp_path: Path) -> None:
    lock, said = RunFolder(tmp_path).lock, []
    with held(tmp_path) as other:
        lock.write_text("n7 12\n")

        def end(text: str) -> None:
            said.append(text)
            other.kill()

        with training_alone(RunFolder(tmp_path), waits_s=(0, 60), say=end):
            pass
    assert said == [f"{tmp_path} is in use by process 12 on n7; waiting 60 s for its end"]


def test_one_after_another_holds_the_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with training_alone(RunFolder(tmp_path / "new"), waits_s=(0, 0)):
            pass
