"""`megatune status`, `logs` and `cancel`: what they show of a run folder and of what Slurm says."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "launch/slurm"))

from command_line import Done, assert_refused, megatune
from fake_slurm import FakeSlurm, account_line, queue_line, said

from megatune.cli.cancel import cancel_run
from megatune.cli.logs import show_logs
from megatune.cli.status import show_status
from megatune.errors import UserError
from megatune.launch.slurm.history import SubmittedJob, remember_job

NO_JOB = said(err="slurm_load_jobs error: Invalid job id specified\n", code=1)
NO_ACCOUNTS = said(err="Slurm accounting storage is disabled\n", code=1)
NOW = datetime.now(UTC)
RUN = {"event": "run", "total_steps": 100, "restart_count": 2}
OOM = (
    "step 12/100 loss 2.5\nTraceback (most recent call last):\n"
    '  File "/v/site-packages/torch/nn/functional.py", line 1, in linear\n'
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of submitted runs of this test alone."""
    monkeypatch.setenv("MEGATUNE_CACHE", str(tmp_path / "cache"))


def step(number: int, seconds: float = 10.0) -> dict[str, object]:
    return {
        "event": "step",
        "step": number,
        "loss": 2.5,
        "tokens_per_second": 1200.0,
        "step_seconds": seconds,
    }


def plant(
    folder: Path, *entries: dict[str, object], job_ids: tuple[str, ...] = ("7",), age_s: float = 30
) -> Path:
    """A run folder with metrics, all of them `age_s` old, and jobs."""
    (folder / "logs").mkdir(parents=True)
    stamp = (NOW - timedelta(seconds=age_s)).isoformat()
    lines = (json.dumps({"schema": 1, "time": stamp, **entry}) + "\n" for entry in entries)
    (folder / "metrics.jsonl").write_text("".join(lines))
    for job_id in job_ids:
        remember_job(folder, SubmittedJob(job_id=job_id, cluster=None, submitted_at=NOW.isoformat()))
    return folder


def save(folder: Path, number: int, *, whole: bool = True) -> dict[str, object]:
    path = folder / f"checkpoints/step-{number:08d}"
    path.mkdir(parents=True)
    if whole:
        (path / "manifest.json").write_text("{}")
    return {"event": "save", "step": number, "path": str(path)}


def asked(
    capsys: pytest.CaptureFixture[str], slurm: FakeSlurm, run: Path | None, **options: bool
) -> dict[str, object]:
    """The answer of `status --json` about one run."""
    chosen = {"everything": False, "watch": False, "as_json": True, **options}
    assert show_status(run, call=slurm, **chosen) == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    return found


def shown(capsys: pytest.CaptureFixture[str], slurm: FakeSlurm, run: Path | None, **options: bool) -> str:
    chosen = {"everything": False, "watch": False, "as_json": False, **options}
    assert show_status(run, call=slurm, **chosen) == 0
    return " ".join(re.sub("[│┃]", " ", capsys.readouterr().out).split())


def running(left: str = "1:00:00") -> FakeSlurm:
    return FakeSlurm(
        squeue=said(queue_line("7", "RUNNING", nodes="n[1-2]", num_nodes=2, left=left)),
        sacct=said(account_line("7", "RUNNING", end="Unknown")),
    )


def ended(state: str, code: str = "1:0") -> FakeSlurm:
    return FakeSlurm(squeue=NO_JOB, sacct=said(account_line("7", state, code=code)))


def test_a_running_run_shows_its_progress_and_how_it_lies_to_the_limit(tmp_path: Path, capsys):
    plant(tmp_path / "run", RUN, step(11), step(12), save(tmp_path / "run", 10))

    found = asked(capsys, running(), tmp_path / "run")

    assert (found["state"], found["nodes"], found["active"]) == ("RUNNING", "n[1-2]", True)
    assert (found["step"], found["total_steps"], found["loss"], found["tokens_per_second"]) == (
        12,
        100,
        2.5,
        1200.0,
    )
    assert (found["eta_s"], found["time_left_s"], found["margin_s"]) == (880.0, 3600, 2720.0)
    assert found["more_jobs_needed"] == 0
    assert found["restarts"] == 2
    assert found["checkpoint_step"] == 10
    assert 30 <= found["checkpoint_age_s"] < 300
    assert found["digest"] is None


def test_a_run_that_will_not_end_in_time_says_how_many_jobs_it_still_needs(tmp_path: Path, capsys):
    plant(tmp_path / "run", RUN, step(10, seconds=200))

    assert "ends 4:50:00 after the limit; needs at least 3 more jobs" in shown(
        capsys, running("10:00"), tmp_path / "run"
    )


def test_a_waiting_run_tells_the_reason_in_words(tmp_path: Path, capsys):
    plant(tmp_path / "run")
    slurm = FakeSlurm(
        squeue=said(queue_line("7", "PENDING", reason="QOSMaxJobsPerUserLimit")), sacct=NO_ACCOUNTS
    )

    assert "PENDING: waits in the queue" in (text := shown(capsys, slurm, tmp_path / "run"))
    assert "you run as many jobs as your limits allow" in text
    assert "step n/a/n/a" in text


def test_a_checkpoint_that_is_not_whole_or_gone_is_not_shown(tmp_path: Path, capsys):
    folder = tmp_path / "run"
    gone = {"event": "save", "step": 8, "path": "x"}
    plant(folder, RUN, gone, save(folder, 10), save(folder, 20, whole=False))

    assert asked(capsys, running(), folder)["checkpoint_step"] == 10


def test_a_failed_run_says_why(tmp_path: Path, capsys):
    folder = plant(tmp_path / "run", RUN, step(12))
    (folder / "logs/rank-00000.log").write_text(OOM)

    text = shown(capsys, ended("FAILED"), folder)
    found = asked(capsys, ended("FAILED"), folder)

    assert "FAILED" in text
    assert "gpu_memory: rank 0 of 1 ran out of GPU memory" in text
    assert "Next: Lower train.per_device_train_batch_size" in text
    assert found["digest"]["class"] == "gpu_memory"
    assert found["digest"]["evidence"][0]["file"] == "logs/rank-00000.log"


def test_a_job_whose_node_failed_is_not_called_done_for_its_exit_code(tmp_path: Path, capsys):
    folder = plant(tmp_path / "run", RUN, step(12))

    assert asked(capsys, ended("NODE_FAIL", code="0:0"), folder)["digest"]["class"] == "node"


def test_a_script_that_went_on_after_a_failed_step_is_called_failed(tmp_path: Path, capsys):
    folder = plant(tmp_path / "run", RUN, step(12))
    accounts = account_line("7", "COMPLETED") + account_line("7.0", "FAILED", code="16:0")

    found = asked(capsys, FakeSlurm(squeue=NO_JOB, sacct=said(accounts)), folder)

    assert found["notes"] == ["the script went on although its step failed: 7.0 FAILED (16:0)"]
    assert found["digest"] is not None


def test_a_run_that_has_ended_well_has_no_digest(tmp_path: Path, capsys):
    stop = {"event": "stop", "step": 100, "exit_code": 0, "reason": "all steps done"}
    folder = plant(tmp_path / "run", RUN, step(100), stop)

    found = asked(capsys, ended("COMPLETED", code="0:0"), folder)

    assert (found["state"], found["reason_text"], found["digest"]) == ("COMPLETED", "all steps done", None)


def test_of_a_chain_the_job_that_runs_is_shown_and_all_are_listed(tmp_path: Path, capsys):
    folder = plant(tmp_path / "run", RUN, job_ids=("6", "7", "8"))
    queue = queue_line("7", "RUNNING") + queue_line("8", "PENDING", reason="Dependency")
    accounts = account_line("6", "FAILED", code="75:0") + account_line("7", "RUNNING", end="Unknown")

    found = asked(capsys, FakeSlurm(squeue=said(queue), sacct=said(accounts)), folder)

    assert found["job_id"] == "7"
    assert [(job["job_id"], job["state"]) for job in found["jobs"]] == [
        ("6", "FAILED"), ("7", "RUNNING"), ("8", "PENDING"),
    ]  # fmt: skip


@pytest.mark.parametrize(("code", "state"), [(0, "FINISHED"), (75, "SAVED")])
def test_a_run_by_hand_has_its_state_from_its_stop_record(tmp_path: Path, capsys, code: int, state: str):
    stop = {"event": "stop", "step": 12, "exit_code": code, "reason": "because"}
    folder = plant(tmp_path / "run", RUN, step(12), stop, job_ids=())
    slurm = FakeSlurm()

    found = asked(capsys, slurm, folder)

    assert (found["state"], found["reason_text"], found["job_id"]) == (state, "because", None)
    assert slurm.asked == [], "Slurm knows nothing of it"


def test_a_run_by_hand_without_an_end_claims_no_state(tmp_path: Path, capsys):
    folder = plant(tmp_path / "run", RUN, step(12), job_ids=())

    found = asked(capsys, FakeSlurm(), folder)

    assert found["state"] is None
    assert "whether it runs is not known" in found["notes"][0]
    assert found["last_record_age_s"] >= 30
    assert found["digest"] is None


def test_without_accounts_a_forgotten_job_is_na_and_the_run_still_shows_its_progress(tmp_path: Path, capsys):
    folder = plant(tmp_path / "run", RUN, step(12))

    text = shown(capsys, FakeSlurm(squeue=NO_JOB, sacct=NO_ACCOUNTS), folder)

    assert "state n/a" in text
    assert "step 12/100" in text
    assert "note: this cluster keeps no accounts" in text


def test_without_run_those_that_wait_or_run_are_shown_and_with_all_every_one(tmp_path: Path, capsys):
    plant(tmp_path / "one", RUN, step(12))
    plant(tmp_path / "two", RUN, step(12), job_ids=("8",))
    queue = queue_line("7", "RUNNING") + queue_line("8", "COMPLETED")
    slurm = FakeSlurm(squeue=said(queue), sacct=NO_ACCOUNTS)

    assert asked(capsys, slurm, None)["run"] == str(tmp_path / "one")
    text = shown(capsys, slurm, None, everything=True)

    assert str(tmp_path / "one") in text
    assert str(tmp_path / "two") in text
    assert len(slurm.commands("squeue")) == 2, "one question for all runs"


def test_nothing_that_runs_is_said(capsys):
    assert "no run of yours waits or runs" in shown(capsys, FakeSlurm(), None)


def test_run_and_all_together_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="not both"):
        show_status(tmp_path, everything=True, watch=False, as_json=False, call=FakeSlurm())


def test_watching_a_pipe_prints_a_line_a_change_and_ends_with_the_job(tmp_path: Path, capsys):
    folder = plant(tmp_path / "run", RUN, step(12))
    (folder / "logs/rank-00000.log").write_text(OOM)
    states = iter([running(), running("59:00"), ended("FAILED")])
    current = FakeSlurm()

    def slurm(command):
        nonlocal current
        if command[0] == "squeue":
            current = next(states)
        return current(command)

    show_status(folder, everything=False, watch=True, as_json=False, call=slurm, sleep=lambda _: None)

    lines = capsys.readouterr().out.splitlines()
    assert "job 7 RUNNING step 12/100" in lines[0]
    assert "job 7 FAILED" in lines[1]
    assert lines[2].startswith("gpu_memory: ")


def test_watching_ends_at_ctrl_c(tmp_path: Path):
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    folder = plant(tmp_path / "run", RUN)

    assert (
        show_status(folder, everything=False, watch=True, as_json=False, call=running(), sleep=interrupt) == 0
    )


def test_a_run_file_stands_for_the_folder_it_trains_into(run_file: Path, output_dir: Path, capsys):
    plant(output_dir, RUN, step(12))

    assert asked(capsys, running(), run_file)["run"] == str(output_dir)


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


def test_watching_on_a_terminal_redraws_in_place(tmp_path: Path):
    stop = {"event": "stop", "step": 100, "exit_code": 0, "reason": "all steps done"}
    folder = plant(tmp_path / "run", RUN, step(100), stop, job_ids=())
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "megatune", "status", str(folder), "--watch"]

    done = subprocess.run(
        command, stdout=theirs, stdin=theirs, env={**os.environ, "TERM": "xterm"}, timeout=60
    )
    os.close(theirs)
    with os.fdopen(ours, "rb") as screen:
        text = screen.read1(65536)

    assert done.returncode == 0
    assert b"FINISHED" in text
    assert b"\x1b[" in text


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


def test_the_documentation_names_every_key_of_the_answer(tmp_path: Path, capsys):
    folder = plant(tmp_path / "run", RUN, step(12))
    (folder / "logs/rank-00000.log").write_text(OOM)
    text = (Path(__file__).parents[2] / "docs/status.md").read_text(encoding="utf-8")

    found = asked(capsys, ended("FAILED"), folder)

    named = set(re.findall(r"\w+", text))
    assert set(found) - named == set()
    assert set(found["digest"]) - named == set()
    assert set(found["jobs"][0]) - named == set()
