"""`run_ranks`: what is shown and what the logs hold."""

import os
import pty


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
