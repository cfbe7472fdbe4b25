"""`run_ranks`: which rank is blamed, and what becomes of the others."""

import time

import pytest
from launcher_process import STUBBORN_RANK, is_alive, wait_until


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


def test_a_job_that_hangs_is_ended_after_its_timeout(launch):
    launcher = launch("if rank == 0: sys.exit(0)\n" + STUBBORN_RANK, timeout_s=1.0)
    launcher.finish()
    assert launcher.process.returncode == 1
    assert "did not end within 1 s; ranks still running: 1" in launcher.result()["failure_text"]
    assert not any(is_alive(pid) for pid in launcher.pids())


def test_the_log_of_a_killed_rank_says_how_it_ended_and_that_of_a_rank_we_ended_does_not(launch):
    launcher = launch("if rank == 1: wait_for(0); os.kill(os.getpid(), 9)\nsleep_through()")
    launcher.finish()

    logs = [(launcher.folder / f"logs/rank-{rank:05d}.log").read_text() for rank in (0, 1)]

    assert logs[1].rstrip().endswith("rank 1 ended: signal 9 ===")
    assert " ended: " not in logs[0]
    assert " ended: " not in launcher.result()["failure_text"]
