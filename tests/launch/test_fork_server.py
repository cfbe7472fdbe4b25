"""Ranks that are forks: what they take over, and what they do not. Their ends are in test_local_*.py."""

import os
import sys
from pathlib import Path

import pytest
from launcher_process import wait_until

from megatune.errors import LaunchError
from megatune.launch.fork_server import ForkServer, rank_starts

STARTED_BY = """
import sys
from megatune.launch.fork_server import ForkServer
server = ForkServer(sys.argv[1:])
process = server.start([sys.executable, "-m", "shown"], environment={"ONLY": "this"}, stdout=1, stderr=2)
while process.poll() is None:
    pass
sys.exit(process.poll())
"""


TWICE = """
import sys
from megatune.launch.fork_server import ForkServer
server = ForkServer([])
def code_of(name):
    process = server.start([sys.executable, "-m", name], environment={}, stdout=1, stderr=2)
    while process.poll() is None:
        pass
    return process.poll()
first = code_of("ends_with_2")
server._ended.update(dict.fromkeys(range(2**15), first))  # what the kernel's numbers come round to
print(first, code_of("ends_with_0"))
"""


@pytest.fixture
def shown(tmp_path, start_launcher):
    """`shown(code, *preload)`: exit code and output of a forked module that runs `code`."""

    def run(code: str, *preload: str) -> tuple[int, str, str]:
        (tmp_path / "shown.py").write_text(code)
        launcher = start_launcher("", {}, code=STARTED_BY.replace("sys.argv[1:]", repr(list(preload))))
        out, err = launcher.finish()
        return launcher.process.returncode, out, err

    return run


def test_a_fork_finds_what_was_imported_and_imports_the_rest_itself(shown):
    code, out, _ = shown(
        "import sys; print('wave' in sys.modules, 'calendar' in sys.modules); import calendar", "wave"
    )
    assert (code, out) == (0, "True False\n")


def test_a_fork_has_its_own_environment_arguments_and_input(shown):
    code, out, _ = shown(
        "import os, sys\n"
        "print(dict(os.environ), sys.argv[1:], __name__, repr(sys.stdin.read()), os.getsid(0) == os.getpid())"
    )
    assert (code, out) == (0, "{'ONLY': 'this'} [] __main__ '' True\n")


@pytest.mark.parametrize(
    ("end", "code", "error"),
    [
        ("import sys; sys.exit(75)", 75, ""),
        ("raise SystemExit('it is full')", 1, "it is full"),
        ("raise ValueError('third')", 1, "ValueError: third"),
        ("import os; os._exit(9)", 9, ""),
        ("import os; os.abort()", 250, "Fatal Python error: Aborted"),
    ],
)
def test_the_end_of_a_fork_is_told_as_that_of_an_interpreter(shown, end, code, error):
    returned, _, err = shown(f"print('last words', end=''); {end}")
    assert returned == code
    assert error in err


def test_a_number_that_the_kernel_gives_out_again_is_another_process(tmp_path, start_launcher):
    (tmp_path / "ends_with_2.py").write_text("raise SystemExit(2)")
    (tmp_path / "ends_with_0.py").write_text("import time; time.sleep(0.2)")
    out, err = start_launcher("", {}, code=TWICE).finish()
    assert out == "2 0\n", err


def test_the_last_words_of_a_killed_fork_are_not_lost(shown):
    code, out, _ = shown("import os; print('last words', end=''); os.kill(os.getpid(), 9)")
    assert (code, out) == (247, "last words")  # -9, as an exit code


def test_a_module_that_cannot_be_imported_is_told_where_it_was_to_be_preloaded(shown):
    code, _, err = shown("", "no_such_module")
    assert code == 1
    assert "No module named 'no_such_module'" in err
    assert "the process that ranks are forked from has ended" in err


def test_only_modules_of_this_interpreter_can_be_forked():
    server = ForkServer([])
    try:
        with pytest.raises(LaunchError, match="cannot fork /bin/true"):
            server.start(["/bin/true"], environment={}, stdout=1, stderr=2)
    finally:
        server.close()


def test_nothing_is_left_of_a_closed_server(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    server = ForkServer([])
    (tmp_path / "sleeper.py").write_text("import time; time.sleep(600)")
    with (tmp_path / "out").open("w") as out:
        process = server.start(
            [sys.executable, "-m", "sleeper"],
            environment={**os.environ, "PYTHONPATH": str(tmp_path)},
            stdout=out.fileno(),
            stderr=out.fileno(),
        )
    server.close()
    wait_until(lambda: not Path(f"/proc/{process.pid}").exists())
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_with_gpus_every_rank_is_an_interpreter(monkeypatch):
    monkeypatch.setattr("megatune.launch.fork_server.count_gpus", lambda: 8)
    with rank_starts(["no_such_module"]) as start:
        assert start.__name__ == "start_process"
