"""Handing jobs in: what sbatch is given, what its answer becomes, what is remembered."""

import json
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, queue_line, said
from job_cases import request_of, run_of

from megatune.config import load_run
from megatune.errors import ConfigError, MegatuneError, SubmitError
from megatune.launch.slurm.history import SubmittedJob, jobs_of, remember_job, remembered_runs
from megatune.launch.slurm.script import render_script
from megatune.launch.slurm.submit import active_jobs, hand_in, refuse_active, submit_jobs, submitted_yaml

SCRIPT = Path("/runs/first/job.sbatch")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGATUNE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("answer", "job_id", "cluster"),
    [("123\n", "123", None), ("123;north\n", "123", "north"), ("Welcome to the site!\n77\n", "77", None)],
)
def test_sbatchs_answer_is_the_job(answer, job_id, cluster):
    slurm = FakeSlurm(sbatch=said(answer))

    job = hand_in(SCRIPT, call=slurm)

    assert (job.job_id, job.cluster) == (job_id, cluster)
    assert slurm.commands("sbatch") == [["--parsable", str(SCRIPT)]]


@pytest.mark.parametrize("answer", ["", "\n", "Submitted batch job 5", "12x", "123;", "-1", "\uff11\uff12"])
def test_an_answer_that_is_none_is_quoted(answer):
    with pytest.raises(SubmitError, match=r"for a job id. Look for the job with `squeue --me`") as caught:
        hand_in(SCRIPT, call=FakeSlurm(sbatch=said(answer)))

    assert repr(answer.strip()) in str(caught.value)


def test_a_refused_job_names_the_script_and_slurms_reason():
    refuse = said(err="sbatch: error: Invalid partition name specified\n", code=1)

    with pytest.raises(SubmitError, match=r"/runs/first/job.sbatch \(exit 1\): .*Invalid partition name"):
        hand_in(SCRIPT, call=FakeSlurm(sbatch=refuse))


def test_jobs_of_a_chain_each_wait_for_the_one_before(tmp_path):
    ids = iter(("11\n", "12\n", "13\n"))
    slurm = FakeSlurm(sbatch=lambda _: said(next(ids)))
    run = run_of(tmp_path, train={"output_dir": str(tmp_path / "run")})
    request = request_of(tmp_path, train={"output_dir": str(tmp_path / "run")})

    submit_jobs([run], request, render_script(request), num_jobs=3, after="7", call=slurm, say=print)

    assert [command[1] for command in slurm.commands("sbatch")] == [
        "--dependency=afterany:7",
        "--dependency=afterany:11",
        "--dependency=afterany:12",
    ]
    assert [(job.job_id, job.depends_on) for job in jobs_of(run.folder)] == [
        ("11", "7"),
        ("12", "11"),
        ("13", "12"),
    ]
    assert remembered_runs() == [run.folder]


def test_a_chain_that_fails_half_way_has_remembered_its_first_jobs(tmp_path):
    answers = iter((said("11\n"), said(err="limit reached", code=1)))
    run = run_of(tmp_path, train={"output_dir": str(tmp_path / "run")})
    request = request_of(tmp_path, train={"output_dir": str(tmp_path / "run")})

    with pytest.raises(SubmitError, match=r"limit reached.*taken 1 of 2 jobs before: 11.*--chain 1"):
        submit_jobs(
            [run],
            request,
            "#!/bin/bash\n",
            num_jobs=2,
            after=None,
            call=FakeSlurm(sbatch=lambda _: next(answers)),
            say=print,
        )

    assert [job.job_id for job in jobs_of(run.folder)] == ["11"]


def test_jobs_are_known_of_every_run_when_the_list_of_runs_cannot_be_written(tmp_path, monkeypatch):
    """Else the same runs could be submitted once more, into the same folders."""
    monkeypatch.setenv("MEGATUNE_CACHE", "/proc/no-cache")
    runs = [run_of(tmp_path, train={"output_dir": str(tmp_path / name)}) for name in ("a", "b")]
    notes: list[str] = []

    submit_jobs(
        runs,
        request_of(tmp_path, train={"output_dir": str(tmp_path / "a")}),
        "#!/bin/bash\n",
        num_jobs=1,
        after=None,
        call=FakeSlurm(sbatch=lambda _: said("11\n")),
        say=notes.append,
    )

    assert [[job.job_id for job in jobs_of(run.folder)] for run in runs] == [["11_0"], ["11_1"]]
    assert len(notes) == 1
    assert "/proc" in notes[0]


def test_a_job_that_cannot_be_written_down_is_named(tmp_path):
    run = run_of(tmp_path, train={"output_dir": str(tmp_path / "run")})
    (tmp_path / "run/jobs.jsonl").mkdir(parents=True)

    with pytest.raises(SubmitError, match=r"has taken job 11.*scancel 11"):
        submit_jobs(
            [run],
            request_of(tmp_path, train={"output_dir": str(tmp_path / "run")}),
            "#!/bin/bash\n",
            num_jobs=1,
            after=None,
            call=FakeSlurm(sbatch=lambda _: said("11\n")),
            say=print,
        )


def test_a_torn_line_costs_itself_alone(tmp_path):
    remember(tmp_path / "run", "11")
    with (tmp_path / "run/jobs.jsonl").open("a") as file:
        file.write('{"job_id": "12", "sub')

    assert [job.job_id for job in jobs_of(tmp_path / "run")] == ["11"]
    remember(tmp_path / "run", "13")
    with pytest.raises(MegatuneError, match=r"line 2 is no JSON.*Delete the line"):
        jobs_of(tmp_path / "run")
    lines = (tmp_path / "run/jobs.jsonl").read_text().splitlines()
    assert json.loads(lines[2])["job_id"] == "13", "the next one stands on a line of its own"


@pytest.mark.parametrize("line", ["5", "[]", "{}", '{"job_id": 7, "submitted_at": "x"}'])
def test_a_line_of_another_shape_is_named(tmp_path, line):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/jobs.jsonl").write_text(f"\n{line}\n")

    with pytest.raises(MegatuneError, match=r"jobs.jsonl, line 2 is no object with the text"):
        jobs_of(tmp_path / "run")


def test_the_submitted_run_file_reads_back_to_the_run_with_the_jobs_layout(tmp_path):
    site = {"gpus_per_node": 8, "cpus_per_node": 64}
    sections = {"slurm": {"nodes": 4, "gpus_per_node": None, "cpus_per_task": None}}
    run = run_of(tmp_path, **sections)
    path = tmp_path / "submitted.yaml"
    path.write_text(submitted_yaml(run, request_of(tmp_path, site, **sections)))

    again = load_run(path).run

    assert (again.launch.nodes, again.launch.nproc_per_node) == (4, 8)
    assert again.model_copy(update={"launch": run.loaded.run.launch}) == run.loaded.run


def test_the_submitted_run_file_of_a_cpu_run_reads_back_too(tmp_path):
    sections = {"slurm": {"gpus_per_node": 0, "nodes": 2}, "launch": {"nproc_per_node": 3}}
    path = tmp_path / "submitted.yaml"
    path.write_text(submitted_yaml(run_of(tmp_path, **sections), request_of(tmp_path, **sections)))

    assert load_run(path).run.launch.nproc_per_node == 3


def remember(folder: Path, *job_ids: str) -> None:
    folder.mkdir(exist_ok=True)
    for job_id in job_ids:
        remember_job(folder, SubmittedJob(job_id=job_id, cluster=None, submitted_at="2026-01-01T00:00:00Z"))


def test_a_run_with_a_job_in_the_queue_is_not_submitted_again(tmp_path):
    remember(tmp_path / "my run", "11", "12")
    slurm = FakeSlurm(squeue=said(queue_line("11", "COMPLETED") + queue_line("12", "PENDING")))

    with pytest.raises(
        ConfigError, match=r"has job 12 in the queue already.*megatune cancel '.*my run'.*--chain"
    ):
        refuse_active([tmp_path / "my run"], slurm)


def test_a_run_whose_jobs_have_ended_may_be_submitted_again(tmp_path):
    remember(tmp_path / "run", "11")

    assert active_jobs(tmp_path / "run", FakeSlurm(squeue=said(queue_line("11", "FAILED")))) == []
    refuse_active([tmp_path / "run"], FakeSlurm(squeue=said(err="Invalid job id specified", code=1)))


def test_a_run_that_was_never_submitted_asks_slurm_nothing(tmp_path):
    slurm = FakeSlurm()

    refuse_active([tmp_path], slurm)

    assert slurm.asked == []
