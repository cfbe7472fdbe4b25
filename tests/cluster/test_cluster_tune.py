"""A tune on a real cluster: trials as steps on all nodes of one job."""

import json

import pytest
from cluster_runs import Cluster
from tiny_runs import metrics_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_trials_run_back_to_back_on_all_nodes_of_one_job(cluster: Cluster):
    run_file = cluster.run_file(
        "tuned", slurm={"mem": "3000M"}, launch={"nproc_per_node": 1}, parallel={"tp_size": 1}
    )
    tune = run_file.parent / "run/tune"
    arguments = ["--slurm", "1", "--trials", "2", "--steps", "2", "--warmup", "1", "--json"]
    arguments += ["--try", "train.per_device_train_batch_size=1,2", "--fix", "reduce_bucket_size"]

    job = json.loads(cluster.megatune("tune", run_file, *arguments).stdout)["job_id"]
    state = cluster.wait_until_ended(f"{job}_0", timeout_s=400)

    assert state == "COMPLETED", [log.read_text() for log in (tune / "logs").iterdir()]
    found = json.loads(cluster.megatune("tune", run_file, "--results", "--json").stdout)
    assert [trial["outcome"] for trial in found["trials"]] == ["ok", "ok"], found["trials"]
    for number in range(2):
        (run,) = metrics_of(tune / f"trials/0000{number}", "run")
        assert (run["num_nodes"], run["launcher"]) == (2, "slurm")
        assert run["job_id"] == f"{job}_0"
    assert (tune / "best.yaml").is_file()
