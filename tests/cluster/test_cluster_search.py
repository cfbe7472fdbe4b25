"""A search on a real cluster: workers of one array share its journal."""

import json

import pytest
from cluster_runs import Cluster
from tiny_runs import metrics_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_workers_of_an_array_share_the_trials_of_a_search(cluster: Cluster):
    slurm = {"nodes": 1, "mem": "3000M"}
    run_file = cluster.run_file(
        "searched", slurm=slurm, launch={"nproc_per_node": 1}, train={"max_steps": 2}, parallel={"tp_size": 1}
    )
    space = run_file.with_name("space.yaml")
    search = run_file.parent / "run/search"
    space.write_text("train.learning_rate: [1e-3, 1e-2]\n")

    arguments = ["--space", space, "--sampler", "grid", "--slurm", "2", "--json"]
    job = json.loads(cluster.megatune("search", run_file, *arguments).stdout)["job_id"]
    for task in ("0", "1"):
        state = cluster.wait_until_ended(f"{job}_{task}", timeout_s=400)
        assert state == "COMPLETED", [log.read_text() for log in (search / "logs").iterdir()]

    found = json.loads(cluster.megatune("search", run_file, "--results", "--json").stdout)
    assert [trial["state"] for trial in found["trials"]] == ["done", "done"]
    for number in range(2):
        (run,) = metrics_of(search / f"trials/0000{number}", "run")
        assert run["job_id"], "trained once, inside a job"
    assert found["best"]["values"].keys() == {"train.learning_rate"}
    assert (search / "best.yaml").is_file()
