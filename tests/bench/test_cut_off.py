"""A suite that is ended early: what was finished is kept, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

QUICK = """
import json
print(json.dumps({"seconds": 1.5}))
"""
LONG = """
import json
print(json.dumps({"words": "x" * 200_000}))
"""
ENDLESS = """
import os, subprocess, sys, tempfile, time
from pathlib import Path
folder = tempfile.mkdtemp(prefix="left-")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(sys.argv[1]).write_text(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""


def start(folder: Path, *cases: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """`megatune bench` of these programs, in two rounds; its temporary files go into `folder`/tmp."""
    (folder / "tmp").mkdir()
    (folder / "quick.py").write_text(QUICK)
    (folder / "long.py").write_text(LONG)
    (folder / "endless.py").write_text(ENDLESS)
    programs = {name: [f"{folder}/{name}.py"] for name in ("quick", "long")}
    programs["endless"] = [f"{folder}/endless.py", f"{folder}/pids"]
    listed = [{"name": name, "program": programs[name]} for name in cases]
    (folder / "s.yaml").write_text(json.dumps({"about": "programs", "rounds": 2, "cases": listed}))
    return subprocess.Popen(
        [sys.executable, "-m", "megatune", "bench", str(folder / "s.yaml"), "--results", str(folder / "results"),
         *options],
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def pids_in(path: Path, timeout_s: float = 60.0) -> list[int]:
    """What the endless program writes when it is under way."""
    until = time.monotonic() + timeout_s
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until, "the program did not start"
        time.sleep(0.05)
    return [int(pid) for pid in path.read_text().split()]


def until_one_lies_in(folder: Path, timeout_s: float = 60.0) -> Path:
    """The first record that is written there, whole."""
    until = time.monotonic() + timeout_s
    while not (found := list(folder.glob("*.json"))):
        assert time.monotonic() < until, "no record was written"
        time.sleep(0.05)
    return found[0]


def is_running(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_suite_that_is_ended_keeps_what_was_finished_and_leaves_nothing(tmp_path: Path, signum: int):
    bench = start(tmp_path, "quick", "endless")
    pids = pids_in(tmp_path / "pids")
    bench.send_signal(signum)
    _, told = bench.communicate(timeout=60)

    assert bench.returncode == 75, told
    (path,) = (tmp_path / "results").iterdir()
    assert path.name.endswith("-cut-off.json")
    record = json.loads(path.read_text())
    assert record["cut_off"] == signal.Signals(signum).name
    quick, endless = record["cases"]
    assert quick["printed"] == [[{"seconds": 1.5}]]
    assert quick["failure"] is None
    assert endless["failure"] == f"not run: cut off by {signal.Signals(signum).name}"
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not any(is_running(pid) for pid in pids)


def test_without_a_finished_case_there_is_no_record(tmp_path: Path):
    bench = start(tmp_path, "endless")
    pids = pids_in(tmp_path / "pids")
    bench.send_signal(signal.SIGTERM)
    _, told = bench.communicate(timeout=60)

    assert bench.returncode == 1
    assert "there is no record" in told
    assert not (tmp_path / "results").exists()
    assert not any(is_running(pid) for pid in pids)


def test_ctrl_c_while_the_record_is_printed_leaves_the_record_whole_and_no_traceback(tmp_path: Path):
    bench = start(tmp_path, "long", options=("--json",))
    path = until_one_lies_in(tmp_path / "results")
    time.sleep(1.0)  # it is printing: nobody reads, and a pipe holds 64 KiB of the 400
    assert bench.poll() is None
    bench.send_signal(signal.SIGINT)
    _, told = bench.communicate(timeout=60)

    assert bench.returncode not in (0, None)
    assert "Traceback" not in told
    record = json.loads(path.read_text())
    assert record["cut_off"] is None
    assert len(record["cases"][0]["printed"]) == 2
