"""A benchmark suite on a real cluster: an array of jobs, a round each, cases as steps on the nodes they ask for."""

import json
from pathlib import Path

import pytest
from cluster_runs import Cluster
from tiny_models import TINY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SUITE = """
about: a tiny model on one node and on two
rounds: 2
baseline: "1 node"
work: {model: MODEL, max_seq_length: 32, micro_batch: 1, precision: fp32, warmup_steps: 1, steps: 2}
cases:
  - {name: "1 node", train: [], work: {nodes: 1}}
  - {name: "8 nodes", train: [], work: {nodes: 8}}
  - {name: "tp=2", train: [parallel.tp_size=2]}
"""


def write_suite(cluster: Cluster) -> Path:
    model_type, config = TINY["llama"]
    (cluster.folder / "model").mkdir(exist_ok=True)
    (cluster.folder / "model/config.json").write_text(json.dumps({"model_type": model_type, **config}))
    path = cluster.folder / "nodes.yaml"
    path.write_text(SUITE.replace("MODEL", str(cluster.folder / "model")))
    return path


def test_rounds_are_tasks_of_an_array_and_cases_take_the_nodes_they_ask_for(cluster: Cluster):
    suite, results = write_suite(cluster), cluster.folder / "results"
    run_file = cluster.run_file("benched", slurm={"mem": "5000M"}, launch={"nproc_per_node": 2})
    asked = ["bench", suite, "--slurm", run_file, "--results", results, "--json"]

    handed_in = json.loads(cluster.megatune(*asked).stdout)
    assert handed_in["rounds"] == 2
    early = cluster.megatune(*asked, "--collect", check=False)
    for task in range(2):
        cluster.wait_until_ended(f"{handed_in['job_id']}_{task}", timeout_s=400)
    done = cluster.megatune(*asked, "--collect", check=False)

    logs = [log.read_text() for log in (Path(handed_in["folder"]) / "logs").iterdir()]
    assert "no round has ended yet" in early.stderr or "of 2 rounds have ended" in early.stderr
    assert done.returncode == 1, "a case failed, as it had to"
    (kept,) = results.glob("nodes-*.json")
    record = json.loads(kept.read_text())
    assert record["rounds"] == 2, logs
    cases = {case["name"]: case for case in record["cases"]}
    trained = {name: case for name, case in cases.items() if not case["failure"]}
    assert {name: (case["work"]["nodes"], case["work"]["ranks"]) for name, case in trained.items()} == {
        "1 node": (1, 2),
        "tp=2": (2, 4),
    }, logs
    assert all(len(case["runs"]) == 2 for case in trained.values())
    (link,) = record["node_links"]
    assert (link["nodes"], link["ranks"]) == (2, 4)
    assert link["link_bytes_per_s"] > 0
    assert "dp=2 x tp=2" in cases["tp=2"]["engine"]
    assert cases["tp=2"]["to_baseline"].startswith("not compared"), "twice as many rows a step"
    assert "needs 8 nodes, and the job has 2" in cases["8 nodes"]["failure"]
    again = cluster.megatune(*asked, check=False)
    assert "2 round(s) already" in again.stderr


def test_what_no_job_can_time_is_refused(cluster: Cluster):
    run_file = cluster.run_file("refused")

    done = cluster.megatune("bench", "smoke", "--slurm", run_file, check=False)

    assert done.returncode == 2
    assert "is no training: on nodes of a job only cases with `train` run" in done.stderr
