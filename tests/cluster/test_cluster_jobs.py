"""Submitted runs on a real cluster: they train the same numbers, and go on after whatever ends them."""

import json
from pathlib import Path

import pytest
from checkpoint_bits import same_weights
from cluster_runs import Cluster, losses, steps_taken, train_here
from lab import Lab
from tiny_runs import metrics_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SMALL = {"launch": {"nproc_per_node": 1}, "parallel": {"tp_size": 1}}
"""One rank on each of the two nodes, for tests that start again and again: most of a start is imports of each rank."""
LONG = {**SMALL, "train": {"max_steps": 120}}
BROKEN = {**SMALL, "train": {"max_steps": 60}, "checkpoint": {"save_steps": 5}}


@pytest.fixture(scope="module")
def undisturbed(lab: Lab, session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the BROKEN run with local ranks that nothing happens to."""
    cluster = Cluster(lab, tmp_path_factory.mktemp("undisturbed"), session_folder)
    return losses(train_here(cluster.run_file(**BROKEN), num_ranks=2))


def test_a_job_over_two_nodes_trains_like_one_process(cluster: Cluster):
    run_file = cluster.run_file()

    job = cluster.submit(run_file)
    state = cluster.wait_until_ended(job)

    output_dir = run_file.parent / "run"
    assert state == "COMPLETED", (output_dir / f"logs/job-{job}.log").read_text()
    run = metrics_of(output_dir, "run")[-1]
    assert (run["world_size"], run["num_nodes"], run["launcher"]) == (4, 2, "slurm")
    assert (run["job_id"], run["restart_count"]) == (job, 0)
    alone = train_here(run_file, "parallel.tp_size=1", "train.gradient_accumulation_steps=4", num_ranks=1)
    assert losses(output_dir) == pytest.approx(losses(alone), rel=2e-6)
    assert "train: 60 examples" in (output_dir / "logs/prepare.log").read_text(), "before the ranks started"
    assert "on all 2 nodes together, over MPI (pmi" in (output_dir / f"logs/job-{job}.log").read_text()
    assert sorted(path.name for path in (output_dir / "logs").glob("rank-*")) == [
        f"rank-{rank:05d}.log" for rank in range(4)
    ]


def test_processes_that_do_not_meet_over_mpi_leave_the_data_to_one_node(cluster: Cluster):
    site = cluster.folder / "site.yaml"
    site.write_text(json.dumps({"environment": {"MPI4PY_LIBMPI": "/no/such/libmpi.so"}}))
    run_file = cluster.run_file("alone", slurm={"site": str(site)}, train={"max_steps": 1})

    job = cluster.submit(run_file)

    log = run_file.parent / f"run/logs/job-{job}.log"
    assert cluster.wait_until_ended(job) == "COMPLETED", log.read_text()
    assert "on one node, for processes of several do not meet over MPI: see" in log.read_text()
    assert "train: 60 examples" in (run_file.parent / "run/logs/prepare.log").read_text()
    assert "--mpi=pmi2: exit code" in (run_file.parent / "run/logs/prepare-mpi.log").read_text()


def test_preempted_five_times_a_run_ends_with_the_same_bits(cluster: Cluster):
    # Asked once, `none` is done once: a job that comes back goes on from what it has saved.
    run_file = cluster.run_file(**LONG, checkpoint={"save_steps": 50, "resume": "none"})
    output_dir = run_file.parent / "run"

    job = cluster.submit(run_file)
    for round_number in range(5):
        cluster.wait_for_step(output_dir, steps_taken(output_dir) + 3)
        urgent = ["sbatch", "--parsable", "-p", "urgent", "-N3", "--exclusive", "-t1", "-o", "/dev/null"]
        preempting = cluster.slurm(*urgent, "--wrap", "sleep 1")
        cluster.wait(
            f"restart {round_number + 1}",
            lambda n=round_number: cluster.field(job, "Restarts") == str(n + 1),
            timeout_s=120,
        )
        cluster.wait_until_ended(preempting)
    assert cluster.wait_until_ended(job, timeout_s=300) == "COMPLETED"

    here = train_here(run_file, num_ranks=2)
    assert losses(output_dir) == losses(here)
    assert same_weights(output_dir, here)
    assert metrics_of(output_dir, "run")[-1]["restart_count"] == 5
    assert len(metrics_of(output_dir, "resume")) == 5


def test_a_run_stops_before_its_time_limit_is_queued_again_and_goes_on(cluster: Cluster):
    run_file = cluster.run_file(**SMALL, train={"max_steps": 3000}, slurm={"signal_delay_s": 100})
    output_dir = run_file.parent / "run"

    job = cluster.submit(run_file)
    cluster.wait_for_step(output_dir, 3)
    # Limits are whole minutes. This leaves one to two, so the warning is due at once or in 20 s.
    cluster.slurm("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes_run(cluster, job) + 2}")
    cluster.wait("the first restart", lambda: cluster.field(job, "Restarts") == "1", timeout_s=150)
    cluster.slurm("scontrol", "update", f"JobId={job}", "TimeLimit=20")

    stop = metrics_of(output_dir, "stop")[0]
    assert stop["exit_code"] == 75
    assert stop["step"] == metrics_of(output_dir, "save")[-1]["step"], "what was computed was saved"
    cluster.wait_for_step(output_dir, stop["step"] + 1)
    assert metrics_of(output_dir, "resume")[0]["step"] == stop["step"]


def test_a_power_cut_leads_to_a_restart_without_the_dead_node(cluster: Cluster, undisturbed: list[float]):
    run_file = cluster.run_file(**BROKEN)
    output_dir = run_file.parent / "run"

    job = cluster.submit(run_file)
    cluster.wait_for_step(output_dir, 12)
    batch_host = cluster.field(job, "BatchHost")
    dead = next(node for node in nodes_of(cluster, job) if node != batch_host)
    cluster.lab.crash(dead)
    try:
        state = cluster.wait_until_ended(job, timeout_s=240)
        assert state == "COMPLETED", (output_dir / f"logs/job-{job}.log").read_text()
        assert metrics_of(output_dir, "resume")[0]["step"] >= 5
        assert dead not in metrics_of(output_dir, "run")[-1]["hosts"]
    finally:
        cluster.lab.boot(dead)
        cluster.wait("the node's return", lambda: "idle" in cluster.slurm("sinfo", "-hn", dead, "-o", "%T"))
    assert losses(output_dir) == undisturbed


def test_a_cut_cable_leads_to_a_restart_and_the_same_losses(cluster: Cluster, undisturbed: list[float]):
    run_file = cluster.run_file(**BROKEN)
    output_dir = run_file.parent / "run"

    job = cluster.submit(run_file)
    cluster.wait_for_step(output_dir, 12)
    batch_host = cluster.field(job, "BatchHost")
    cut = next(node for node in nodes_of(cluster, job) if node != batch_host)
    cluster.lab.cut_cable(cut)
    try:
        state = cluster.wait_until_ended(job, timeout_s=240)
    finally:
        cluster.lab.mend_cable(cut)
    assert state == "COMPLETED", (output_dir / f"logs/job-{job}.log").read_text()
    assert losses(output_dir) == undisturbed


def test_a_cancelled_run_saves_and_is_not_queued_again(cluster: Cluster):
    run_file = cluster.run_file(**LONG)
    output_dir = run_file.parent / "run"

    job = cluster.submit(run_file)
    cluster.wait_for_step(output_dir, 3)
    cluster.megatune("cancel", output_dir)
    cluster.wait_until_ended(job)

    assert metrics_of(output_dir, "save")[-1]["step"] == metrics_of(output_dir, "stop")[-1]["step"] >= 3
    assert cluster.field(job, "Restarts") == "0"
    (shown,) = json.loads(cluster.megatune("status", output_dir, "--json").stdout)["runs"]
    assert shown["step"] == metrics_of(output_dir, "stop")[-1]["step"]


def test_an_array_trains_each_of_its_runs_in_a_folder_of_its_own(cluster: Cluster):
    run_file = cluster.run_file(
        train={"max_steps": 2},
        slurm={"nodes": 1, "mem": "3000M", "array_parallelism": 2},
        parallel={"tp_size": 1},
    )
    answer = json.loads(
        cluster.megatune("submit", run_file, "--sweep", "train.learning_rate=1e-3,2e-3", "--json").stdout
    )

    cluster.wait("the array's end", lambda: not cluster.slurm("squeue", "-h", "-o", "%i"), timeout_s=240)
    folders = [Path(folder) for folder in answer["runs"]]
    rates = [metrics_of(folder, "step")[-1]["learning_rate"] for folder in folders]
    assert len(set(rates)) == len(folders) == 2
    assert all(metrics_of(folder, "stop")[-1]["exit_code"] == 0 for folder in folders)


def nodes_of(cluster: Cluster, job: str) -> list[str]:
    """The nodes a job runs on."""
    return cluster.slurm("scontrol", "show", "hostnames", cluster.field(job, "NodeList")).split()


def minutes_run(cluster: Cluster, job: str) -> int:
    """Whole minutes since the job started."""
    hours, minutes, _ = cluster.field(job, "RunTime").split(":")
    return int(hours) * 60 + int(minutes)
