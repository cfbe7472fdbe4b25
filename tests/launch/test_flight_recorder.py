"""NCCL's traces: asked for by the pipe that torch reads, and kept in the crash bundle. No GPU is here to write one."""

import os
import threading
from pathlib import Path

import pytest

from megatune.launch import ranks
from megatune.launch.flight_recorder import (
    ask_for_trace,
    forget_traces,
    pipe_path,
    recorder_environment,
    traces,
)
from megatune.launch.hang import Hang, write_crash_bundle
from megatune.launch.heartbeat import Beat
from megatune.launch.run_folder import RunFolder


def test_ranks_record_into_the_runs_folder_unless_the_user_has_said_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in recorder_environment(tmp_path):
        monkeypatch.setenv(name, "mine")  # so that what is set below is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "7")

    ranks.record_collectives(tmp_path)

    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "7"
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == f"{tmp_path}/nccl-trace-rank-"


def test_a_rank_that_listens_is_asked_and_one_that_does_not_keeps_nobody_waiting(tmp_path: Path) -> None:
    assert not ask_for_trace(tmp_path, 0), "no pipe"
    os.mkfifo(pipe_path(tmp_path, 0))
    assert not ask_for_trace(tmp_path, 0), "nobody reads it"

    def listen() -> None:  # as torch's monitor does
        with pipe_path(tmp_path, 0).open("rb") as pipe:
            if pipe.read(1) == b"1":
                (tmp_path / "nccl-trace-rank-0").write_bytes(b"trace")

    listener = threading.Thread(target=listen)
    listener.start()
    while not ask_for_trace(tmp_path, 0):
        assert listener.is_alive()
    listener.join()
    assert [path.name for path in traces(tmp_path)] == ["nccl-trace-rank-0"]
    forget_traces(tmp_path)


def test_traces_are_in_the_crash_bundle_and_not_in_that_of_the_next_start(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.heartbeats.mkdir(parents=True)
    (folder.heartbeats / "nccl-trace-rank-1").write_bytes(b"trace")
    os.mkfifo(pipe_path(folder.heartbeats, 1))
    beat = Beat(rank=1, host="a", pid=1, step=2, phase="data", number=3, time_s=0.0)

    bundle = write_crash_bundle(folder, Hang(suspects=(beat,), reason="r", limit_s=1.0), [beat], {})
    forget_traces(folder.heartbeats)

    assert (bundle / "nccl-trace-rank-1").read_bytes() == b"trace"
    assert list(folder.heartbeats.iterdir()) == []
    assert not pipe_path(folder.heartbeats, 1).exists()
