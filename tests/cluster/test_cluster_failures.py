"""Jobs that fail on the cluster, each for another reason, and what `megatune status` says about them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster_runs import Cluster
from lab import Lab
from tiny_runs import write_model_with_tokenizer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ALONE = {"nodes": 1, "requeue": False, "exclude": "n3", "mem": "2000M"}


@pytest.fixture(scope="module")
def failed(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory, session_folder: Path
) -> Iterator[dict[str, dict]]:
    """What status says of each failed run, by what was done to it. They fail side by side."""
    cluster = Cluster(lab, tmp_path_factory.mktemp("failures"), session_folder)
    try:
        runs = {name: plant(cluster) for name, plant in PLANTS.items()}
        jobs = {name: cluster.submit(run_file) for name, run_file in runs.items()}
        cluster.wait_for_step(runs["cancelled"].parent / "run", 2)
        cluster.slurm("scancel", jobs["cancelled"])
        cluster.wait_for_step(runs["node"].parent / "run", 2)
        lab.crash("n3")
        for job in jobs.values():
            cluster.wait_until_ended(job, timeout_s=200)
        yield {name: shown(cluster, run_file) for name, run_file in runs.items()}
    finally:
        if "n3" not in lab._hosts:
            lab.boot("n3")
        cluster.clear()


def shown(cluster: Cluster, run_file: Path) -> dict:
    """The run as `megatune status --json` shows it."""
    answer = cluster.megatune("status", run_file.parent / "run", "--json", check=False).stdout
    (run,) = json.loads(answer)["runs"]
    return run


def one_rank(cluster: Cluster, name: str, **changes) -> Path:
    slurm = {**ALONE, **changes.pop("slurm", {})}
    changes = {"launch": {"nproc_per_node": 1}, "parallel": {"tp_size": 1}, **changes}
    return cluster.run_file(name, slurm=slurm, **changes)


def broken_row(cluster: Cluster) -> Path:
    run_file = one_rank(cluster, "data")
    rows = run_file.parent / "train.jsonl"
    rows.write_text(rows.read_text() + '{"text": \n')
    return run_file


def model_that_goes_away(cluster: Cluster) -> Path:
    """Whole when it is submitted, without weights when it starts: a job later in the queue took them away."""
    run_file = one_rank(cluster, "config")
    model = write_model_with_tokenizer(run_file.parent / "model")
    run = yaml.safe_load(run_file.read_text())
    run["model"]["model_name_or_path"] = str(model)
    run_file.write_text(yaml.safe_dump(run))
    for weights in model.glob("*.safetensors"):
        weights.unlink()
    return run_file


def interpreter_without_megatune(cluster: Cluster) -> Path:
    site = cluster.folder / "site.yaml"
    site.write_text(yaml.safe_dump({"python": shutil.which("python3", path="/usr/bin:/bin")}))
    return one_rank(cluster, "import", slurm={"site": str(site)})


def too_little_memory(cluster: Cluster) -> Path:
    """As little as submit takes. Slurm looks every two seconds, so the run is one that does not end."""
    return long_run(cluster, "host_memory", mem="400M")


def long_run(cluster: Cluster, name: str = "cancelled", **slurm: object) -> Path:
    return one_rank(cluster, name, train={"max_steps": 100_000}, slurm=slurm)


PLANTS = {
    "data": broken_row,
    "config": model_that_goes_away,
    "import": interpreter_without_megatune,
    "host_memory": too_little_memory,
    "cancelled": long_run,
    "node": lambda cluster: long_run(cluster, "node", exclude="n1,n2"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_the_reason_of_a_failed_job_is_recognised(failed: dict[str, dict], name: str):
    run = failed[name]
    assert run["digest"] is not None, run
    # A rank that gets scancel's signal saves before it ends: nothing failed, and the digest says so.
    expected = "stopped" if name == "cancelled" else name
    assert run["digest"]["class"] == expected, run["digest"]
    assert run["digest"]["evidence"] or run["state"] == "CANCELLED"
    assert run["digest"]["next_step"]


def test_the_node_of_a_lost_job_is_shown(failed: dict[str, dict]):
    assert (failed["node"]["state"], failed["node"]["nodes"]) == ("NODE_FAIL", "n3")
