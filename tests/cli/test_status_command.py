"""`megatune status`: what it shows of a run folder and of what Slurm says."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from planted_runs import (
    NO_ACCOUNTS,
    NO_JOB,
    OOM,
    RUN,
    FakeSlurm,
    account_line,
    ended,
    plant,
    queue_line,
    running,
    said,
    save,
    step,
)

from megatune.cli.status import show_status
from megatune.errors import MegatuneError, UserError

pytestmark = pytest.mark.usefixtures("own_cache")


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


@pytest.mark.parametrize(
    ("name", "line"), [("jobs.jsonl", "5"), ("metrics.jsonl", '{"event": "step"}'), ("metrics.jsonl", "{")]
)
def test_a_run_with_a_broken_file_hides_no_other(tmp_path: Path, capsys, name: str, line: str):
    plant(tmp_path / "good", RUN, step(12))
    plant(tmp_path / "bad", RUN, step(12), job_ids=("8",))
    with (tmp_path / "bad" / name).open("a") as file:
        file.write(f"{line}\n")
    slurm = FakeSlurm(squeue=said(queue_line("7", "RUNNING")), sacct=NO_ACCOUNTS)

    code = show_status(None, everything=True, watch=False, as_json=False, call=slurm)

    out, err = capsys.readouterr()
    assert code == 1
    assert str(tmp_path / "good") in out
    assert f"not shown: {tmp_path / 'bad' / name}" in err
    with pytest.raises(MegatuneError, match=name):
        show_status(tmp_path / "bad", everything=False, watch=False, as_json=False, call=slurm)


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


def test_the_documentation_names_every_key_of_the_answer(tmp_path: Path, capsys):
    folder = plant(tmp_path / "run", RUN, step(12))
    (folder / "logs/rank-00000.log").write_text(OOM)
    text = (Path(__file__).parents[2] / "docs/status.md").read_text(encoding="utf-8")

    found = asked(capsys, ended("FAILED"), folder)

    named = set(re.findall(r"\w+", text))
    assert set(found) - named == set()
    assert set(found["digest"]) - named == set()
    assert set(found["jobs"][0]) - named == set()
