"""`run_ranks` as a user meets it: a launcher process is started, and its ranks are small scripts."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatune.errors import LaunchError
from megatune.launch.local import run_ranks

LAUNCHER = """
import json, sys
from pathlib import Path
from megatune.launch.local import run_ranks
asked = json.loads(sys.argv[1])
result = run_ranks([sys.executable, "rank.py"], log_dir=Path("logs"), **asked)
Path("result.json").write_text(json.dumps(vars(result)))
sys.exit(result.exit_code)
"""

RANK_PRELUDE = """
import os, signal, sys, time
from pathlib import Path
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
Path(f"pid-{rank}").write_text(str(os.getpid()))
def wait_for(*ranks):
    while not all(Path(f"pid-{other}").exists() and Path(f"pid-{other}").read_text() for other in ranks):
        time.sleep(0.01)
def save_and_stop(signum, frame):
    Path(f"saved-{rank}").write_text(signal.Signals(signum).name)
    sys.exit(75)
def sleep_through():
    while True:
        time.sleep(0.05)
"""

SAVING_RANK = """
signal.signal(signal.SIGINT, save_and_stop)
signal.signal(signal.SIGTERM, save_and_stop)
Path(f"ready-{rank}").touch()
sleep_through()
"""

STUBBORN_RANK = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path(f"ready-{rank}").touch()
sleep_through()
"""


class Launcher:
    """A launcher process in a folder of its own; `asked` goes to `run_ranks`."""

    def __init__(self, folder: Path, rank_code: str, asked: dict[str, object], **popen: object) -> None:
        self.folder = folder
        (folder / "rank.py").write_text(RANK_PRELUDE + rank_code)
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, json.dumps({"grace_s": 1.0, **asked})],
            cwd=folder,
            # A test run in the background has SIGINT ignored, and would pass that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **popen},
        )

    def finish(self) -> tuple[str, str]:
        return self.process.communicate(timeout=30)

    def result(self) -> dict[str, object]:
        return json.loads((self.folder / "result.json").read_text())

    def wait_until_ready(self, num_ranks: int) -> None:
        wait_until(lambda: all((self.folder / f"ready-{rank}").exists() for rank in range(num_ranks)))

    def pids(self) -> list[int]:
        return [int(file.read_text()) for file in self.folder.glob("pid-*")]

    def log(self, rank: int) -> str:
        return (self.folder / "logs" / f"rank-{rank:05d}.log").read_text()


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


def wait_until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_every_rank_gets_its_place_and_the_job_ends_with_0(launch):
    launcher = launch(
        """
names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR EXTRA".split()
print("place", *(os.environ[name] for name in names), int(os.environ["MASTER_PORT"]) > 0)
""",
        num_ranks=3,
        extra_env={"EXTRA": "e"},
    )
    launcher.finish()
    assert launcher.process.returncode == 0
    for rank in range(3):
        assert f"place {rank} {rank} 3 3 127.0.0.1 e True" in launcher.log(rank)
    assert launcher.result()["failure_text"] == ""


def test_the_cores_are_shared_out_among_the_ranks(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("megatune.launch.local.count_cpus", lambda: 12)
    show = [sys.executable, "-c", "import os; print('threads', os.environ['OMP_NUM_THREADS'])"]
    run_ranks(show, num_ranks=5, log_dir=tmp_path, echo_rank=None)
    assert "threads 2" in (tmp_path / "rank-00004.log").read_text()


def test_only_rank_0_is_echoed_and_its_two_outputs_stay_apart(launch):
    launcher = launch("print(f'out of {rank}'); print(f'err of {rank}', file=sys.stderr)")
    out, err = launcher.finish()
    assert out == "out of 0\n"
    assert err == "err of 0\n"
    assert {"out of 0", "err of 0"} <= set(launcher.log(0).splitlines())
    assert {"out of 1", "err of 1"} <= set(launcher.log(1).splitlines())


def test_logs_of_two_starts_follow_each_other_each_under_its_header(launch):
    launch("print('first start')").finish()
    launcher = launch("print('second start')")
    launcher.finish()
    lines = launcher.log(1).splitlines()
    assert [line.startswith("===") for line in lines] == [True, False, True, False]
    assert lines[1::2] == ["first start", "second start"]
    assert "rank 1 of 2" in lines[0]


def test_much_output_arrives_whole(launch):
    launcher = launch("print('x' * 3_000_000)")
    out, _ = launcher.finish()
    assert out == "x" * 3_000_000 + "\n"
    assert launcher.log(0).endswith(out)


def test_a_reader_that_goes_away_does_not_stop_the_ranks(launch):
    launcher = launch(
        """
for number in range(200):
    print("line", number)
    time.sleep(0.005)
Path(f"done-{rank}").touch()
"""
    )
    launcher.process.stdout.readline()
    launcher.process.stdout.close()
    launcher.process.wait(timeout=30)
    assert launcher.process.returncode == 0
    assert (launcher.folder / "done-0").exists()
    assert "line 199" in launcher.log(0)
    assert "no longer shown on the terminal" in launcher.log(0)


def test_an_exception_in_a_rank_ends_the_job_and_shows_its_traceback(launch):
    launcher = launch(
        """
if rank == 1:
    print("an earlier warning")
    wait_for(0)
    raise ValueError("the third shard is empty")
sleep_through()
"""
    )
    begun = time.monotonic()
    launcher.finish()
    result = launcher.result()
    assert time.monotonic() - begun < 10
    assert (launcher.process.returncode, result["failed_rank"]) == (1, 1)
    assert "rank 1 of 2 failed first: ended with exit code 1" in result["failure_text"]
    assert "Traceback" in result["failure_text"]
    assert "ValueError: the third shard is empty" in result["failure_text"]
    assert "an earlier warning" not in result["failure_text"]
    assert not any(is_alive(pid) for pid in launcher.pids())


def test_a_traceback_that_was_echoed_is_not_repeated(launch):
    launcher = launch("if rank == 0: raise ValueError('once')\nsleep_through()")
    _, err = launcher.finish()
    assert err.count("ValueError: once") == 1
    assert "ValueError" not in launcher.result()["failure_text"]
    assert "rank 0 of 2 failed first" in launcher.result()["failure_text"]


def test_the_rank_that_died_is_blamed_not_the_peer_that_noticed_first(launch):
    launcher = launch(
        """
if rank == 0:
    wait_for(1)
    raise RuntimeError("gloo: Connection closed by peer [127.0.0.1]:4711")
def slow_end(signum, frame):
    raise KeyError("the real cause")
signal.signal(signal.SIGTERM, slow_end)
sleep_through()
"""
    )
    launcher.finish()
    assert launcher.result()["failed_rank"] == 1
    assert "the real cause" in launcher.result()["failure_text"]


def test_a_killed_rank_is_reported_as_such_though_its_peer_fails_too(launch):
    launcher = launch(
        """
wait_for(0, 1)
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    time.sleep(0.01)
    if not Path(f"/proc/{Path('pid-1').read_text()}/fd/0").exists():
        raise RuntimeError("Connection reset by peer")
"""
    )
    launcher.finish()
    assert launcher.process.returncode == 1
    assert "rank 1 of 2 failed first: killed (SIGKILL): probably out of host memory" in str(launcher.result())


def test_a_rank_that_ignores_the_end_is_killed_after_the_grace(launch):
    launcher = launch(
        "if rank == 1: wait_for(0); time.sleep(0.3); sys.exit(3)\n" + STUBBORN_RANK, grace_s=0.3
    )
    launcher.finish()
    assert launcher.result()["failed_rank"] == 1
    assert "ended with exit code 3" in launcher.result()["failure_text"]
    assert not any(is_alive(pid) for pid in launcher.pids())


def test_what_a_rank_has_started_dies_with_the_job(launch):
    launcher = launch(
        """
import subprocess
if rank == 1:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path("pid-child").write_text(str(child.pid))
    sys.exit(3)
sleep_through()
"""
    )
    launcher.finish()
    wait_until(lambda: not any(is_alive(pid) for pid in launcher.pids()))


def test_a_user_error_is_told_once_with_exit_code_2(launch):
    launcher = launch(
        "print('megatune: run.yaml: no such key', file=sys.stderr); time.sleep(0.3); sys.exit(2)"
    )
    _, err = launcher.finish()
    assert launcher.process.returncode == 2
    assert (err + launcher.result()["failure_text"]).count("no such key") == 1


def test_a_user_error_of_an_unseen_rank_is_told_without_its_chatter(launch):
    launcher = launch(
        """
if rank == 1:
    print("loading ...")
    print("megatune: the data has 2 problems:\\n  - row 1\\n  - row 7", file=sys.stderr)
    sys.exit(2)
sleep_through()
"""
    )
    launcher.finish()
    assert launcher.process.returncode == 2
    assert launcher.result()["failure_text"] == "megatune: the data has 2 problems:\n  - row 1\n  - row 7"


@pytest.mark.parametrize(("codes", "expected"), [([0, 75], 75), ([75, 75], 75), ([0, 7], 1), ([75, 2], 2)])
def test_the_ranks_exit_codes_make_one(launch, codes, expected):
    launcher = launch(f"sys.exit({codes}[rank])")
    launcher.finish()
    assert launcher.process.returncode == expected


@pytest.mark.parametrize(
    ("sent", "received"),
    [(signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGTERM")],
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


def test_a_job_that_hangs_is_ended_after_its_timeout(launch):
    launcher = launch("if rank == 0: sys.exit(0)\n" + STUBBORN_RANK, timeout_s=1.0)
    launcher.finish()
    assert launcher.process.returncode == 1
    assert "did not end within 1 s; ranks still running: 1" in launcher.result()["failure_text"]
    assert not any(is_alive(pid) for pid in launcher.pids())


def test_a_port_taken_by_another_program_at_the_last_moment_is_replaced(launch):
    launcher = launch(
        """
port = int(os.environ["MASTER_PORT"])
with open("ports", "a") as file:
    file.write(f"{port}\\n")
if len(Path("ports").read_text().split()) == 1:
    raise RuntimeError(f"The server socket has failed to listen. port: {port}, name: EADDRINUSE")
""",
        num_ranks=1,
    )
    _, err = launcher.finish()
    assert launcher.process.returncode == 0
    first, second = (launcher.folder / "ports").read_text().split()
    assert first != second
    assert f"another program took port {first} first" in err


def test_an_address_in_use_elsewhere_does_not_start_the_ranks_again(launch):
    launcher = launch("raise OSError('port 80: address already in use')", num_ranks=1)
    launcher.finish()
    assert launcher.process.returncode == 1
    assert launcher.log(0).count("===") == 2  # one header


def test_on_a_terminal_rank_0_has_a_terminal_and_its_log_has_plain_lines(launch):
    ours, theirs = pty.openpty()
    launcher = launch(
        """
print(f"tty {sys.stdout.isatty()} log {os.environ.get('MEGATUNE_RANK_LOG', 'none')[-9:]}")
for percent in (10, 50, 100):
    print(f"\\r\\x1b[2K\\x1b[32m{percent}%\\x1b[0m", end="")
print()
""",
        popen={"stdout": theirs, "stderr": theirs, "stdin": theirs},
    )
    os.close(theirs)
    shown = read_terminal(ours)
    launcher.process.wait(timeout=30)
    assert launcher.process.returncode == 0
    assert b"tty True log 00000.log" in shown
    assert b"\x1b[32m50%" in shown
    assert launcher.log(0).splitlines()[1:] == ["tty True log 00000.log", "100%"]
    assert "tty False log none" in launcher.log(1)


def read_terminal(fd: int) -> bytes:
    shown = b""
    while True:
        try:
            shown += os.read(fd, 4096)
        except OSError:  # the other end is closed
            os.close(fd)
            return shown


def test_a_program_that_does_not_exist_is_told_and_nothing_stays(tmp_path):
    with pytest.raises(LaunchError, match="cannot start /no/such/python"):
        run_ranks(["/no/such/python"], num_ranks=2, log_dir=tmp_path)


def test_a_log_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="cannot make the log folder"):
        run_ranks(["true"], num_ranks=1, log_dir=tmp_path / "file" / "logs")


def test_no_file_or_socket_stays_open_after_a_run(tmp_path):
    def open_files() -> list[str]:
        links = [Path(f"/proc/self/fd/{fd}") for fd in range(3, 256) if is_open(fd)]
        return sorted(str(link.readlink()) for link in links)

    before = open_files()
    for _ in range(3):
        run_ranks(["true"], num_ranks=2, log_dir=tmp_path)
    assert open_files() == before


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_the_port_of_a_run_is_free_for_rank_0_to_listen_on(launch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        launcher = launch(
            "import socket\nif rank == 0: socket.create_server(('', int(os.environ['MASTER_PORT']))).close()",
            first_port=taken,
        )
        launcher.finish()
    assert launcher.process.returncode == 0
