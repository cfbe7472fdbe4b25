"""`megatune logs` and `megatune cancel`, and all three commands with programs of Slurm's names."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Done, assert_refused, megatune
from planted_runs import NO_ACCOUNTS, RUN, FakeSlurm, ended, plant, queue_line, running, said, step

from megatune.cli.cancel import cancel_run
from megatune.cli.logs import show_logs
from megatune.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


def test_logs_shows_the_first_ranks_last_lines_and_names_the_file_elsewhere(tmp_path: Path, capfdbinary):
    folder = plant(tmp_path / "run", RUN)
    (folder / "logs/rank-00000.log").write_text("".join(f"line {number}\n" for number in range(100)))

    assert show_logs(folder, rank=None, follow=False, num_lines=2, call=running()) == 0

    out, err = capfdbinary.readouterr()
    assert out == b"line 98\nline 99\n"
    assert b"rank-00000.log" in err


def test_logs_of_a_rank_and_of_the_job_before_any_rank_has_one(tmp_path: Path, capfdbinary):
    folder = plant(tmp_path / "run", RUN)
    (folder / "logs/job-7.log").write_text("module load\n")
    show_logs(folder, rank=None, follow=False, num_lines=5, call=running())
    assert capfdbinary.readouterr()[0] == b"module load\n"

    (folder / "logs/rank-00003.log").write_text("three")
    show_logs(folder, rank=3, follow=False, num_lines=5, call=running())
    assert capfdbinary.readouterr()[0] == b"three"


def test_logs_that_are_not_there_name_those_that_are_and_what_the_job_does(tmp_path: Path):
    folder = plant(tmp_path / "run", RUN)
    pending = FakeSlurm(squeue=said(queue_line("7", "PENDING", reason="Priority")), sacct=NO_ACCOUNTS)
    with pytest.raises(UserError, match="Its job 7 waits in the queue"):
        show_logs(folder, rank=None, follow=False, num_lines=5, call=pending)

    (folder / "logs/rank-00000.log").write_text("zero")
    with pytest.raises(UserError, match=r"no log of rank 9; there are rank-00000\.log"):
        show_logs(folder, rank=9, follow=False, num_lines=5, call=running())


def test_following_prints_what_is_added_over_a_replaced_file_until_the_job_ends(tmp_path: Path, capfdbinary):
    folder = plant(tmp_path / "run", RUN)
    log = folder / "logs/rank-00000.log"
    log.write_text("one\n")
    acts: list[Callable[[], object]] = [
        lambda: log.open("a").write("two\n"),
        lambda: log.rename(log.with_suffix(".old")),
        lambda: log.write_text("three\n"),
    ]

    def sleep(_seconds: float) -> None:
        if acts:
            acts.pop(0)()

    answers = iter([running(), ended("COMPLETED")])
    current = FakeSlurm()

    def slurm(command):
        nonlocal current
        if command[0] == "squeue":
            current = next(answers)
        return current(command)

    show_logs(folder, rank=None, follow=True, num_lines=5, call=slurm, sleep=sleep)

    assert capfdbinary.readouterr()[0] == b"one\ntwo\nthree\n"


def test_cancel_says_what_was_done_to_each_job(tmp_path: Path, capsys):
    folder = plant(tmp_path / "run", RUN, job_ids=("6", "7"))

    cancel_run(folder, now=False, as_json=True, call=running())

    found = json.loads(capsys.readouterr().out)
    assert [(job["job_id"], job["was_active"]) for job in found["jobs"]] == [("7", True), ("6", False)]
    cancel_run(folder, now=True, as_json=False, call=running())
    assert "job 7: cancelled at once" in capsys.readouterr().out


def test_cancelling_a_run_without_jobs_says_how_to_stop_it(tmp_path: Path):
    with pytest.raises(UserError, match="Ctrl-C"):
        cancel_run(plant(tmp_path / "run", RUN, job_ids=()), now=False, as_json=False, call=FakeSlurm())


PROGRAMS = {
    "squeue": f"printf '{queue_line('7', 'RUNNING', nodes='n1').strip()}\\n'",
    "sacct": "echo 'Slurm accounting storage is disabled' >&2; exit 1",
    "scancel": 'echo "$@" >> "$ASKED"',
    "scontrol": 'echo "$@" >> "$ASKED"',
}


@pytest.fixture
def slurm_on_path(tmp_path: Path) -> dict[str, str]:
    """Slurm's programs as scripts, first on PATH; they write what they are asked into $ASKED."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "ASKED": str(tmp_path / "asked")}


def test_the_commands_ask_the_programs_on_the_path(tmp_path: Path, slurm_on_path: dict[str, str]):
    folder = plant(tmp_path / "run", RUN, step(12))

    status = megatune("status", folder, "--json", **slurm_on_path)
    everything = megatune("status", "--all", **slurm_on_path)
    cancelled = megatune("cancel", folder, **slurm_on_path)

    assert status.code == 0, status.text
    assert json.loads(status.out)["runs"][0]["state"] == "RUNNING"
    assert str(folder) in everything.out
    assert cancelled.code == 0, cancelled.text
    assert "asked to save and stop" in cancelled.out
    assert Path(slurm_on_path["ASKED"]).read_text() == "update JobId=7 Requeue=0\n--signal=TERM 7\n"


def test_on_a_machine_without_slurm_the_run_folder_is_shown_and_the_reason_said(tmp_path: Path):
    folder = plant(tmp_path / "run", RUN, step(12))

    done = megatune("status", folder, PATH=str(tmp_path))

    assert done.code == 0, done.text
    assert "there is no squeue on this machine" in done.text
    assert "12/100" in done.text


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, command: str):
    assert_refused(megatune(command, tmp_path), "is no run folder")
    refused: Done = megatune(command, tmp_path / "nowhere")
    assert_refused(refused, "there is no")


def test_the_commands_load_nothing_heavy(tmp_path: Path):
    folder = plant(tmp_path / "run", RUN, step(12))
    code = (
        "import sys; from megatune.cli.status import show_status; from pathlib import Path; "
        f"import megatune.cli.logs, megatune.cli.cancel; show_status(Path({str(folder)!r}), everything=False, "
        "watch=False, as_json=True); "
        "sys.exit(', '.join({'torch', 'transformers', 'datasets', 'deepspeed'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
