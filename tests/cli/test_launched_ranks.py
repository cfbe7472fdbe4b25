"""Ranks that torchrun starts: what they check and build for themselves."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import assert_refused, megatune, steps_of

from megatune.launch.ports import reserve_port

pytestmark = pytest.mark.world

TWO_NODES = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29512",
    "TORCHELASTIC_RUN_ID": "none",
}


def test_a_run_file_that_contradicts_the_launched_world_is_refused(run_file, output_dir):
    done = megatune("train", run_file, "launch.nodes=3", "launch.nproc_per_node=8", **TWO_NODES)

    assert_refused(
        done,
        "2 problems",
        "launch.nodes is 3",
        "4 ranks on 2 node(s)",
        "nproc_per_node is 8",
        "started 2 rank(s)",
    )
    assert not output_dir.exists()


def test_notices_on_the_run_file_are_told_by_the_first_rank_alone(run_file):
    alias = "launch.nproc_per_node=3", "train.micro_batch_size=1"  # refused, so that nobody waits for others
    first = megatune("train", run_file, *alias, **TWO_NODES)
    second = megatune("train", run_file, *alias, **{**TWO_NODES, "RANK": "1", "LOCAL_RANK": "1"})

    assert "micro_batch_size" in first.text
    assert "micro_batch_size" not in second.text


@pytest.mark.timeout(900)  # compiles for a minute or two where DeepSpeed's Adam was not built before
def test_ranks_of_torchrun_offload_with_the_op_that_was_built_once(run_file, output_dir):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    overrides = ["launch.nproc_per_node=2", "parallel.offload=optimizer", "train.max_steps=2"]

    done = subprocess.run(
        [*torchrun, "-m", "megatune", "train", str(run_file), *overrides],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert len(steps_of(output_dir)) == 2
    first_line = (output_dir / "metrics.jsonl").read_text().splitlines()[0]
    assert "DeepSpeedCPUAdam" in json.loads(first_line)["details"]["engine"]
    assert "compiling" not in done.stdout, "no rank compiles by itself, in torch's own folder"


def test_ranks_on_several_nodes_train_only_what_was_prepared_before(run_file: Path, output_dir: Path):
    """Two nodes by what the ranks are told; both are this machine."""
    with reserve_port() as port:
        pass
    given = [run_file, "launch.nproc_per_node=1", "train.max_steps=2"]
    world = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    refused = megatune("train", *given, **world, **meet, RANK="0")
    command = shlex.join(["megatune", "prepare", *map(str, given)])
    assert_refused(refused, "data.train is not prepared", "2 ranks on 2 nodes", f"`{command}`", "mpirun -n N")
    assert list((output_dir / "prepared").glob("*")) == []

    assert megatune(*shlex.split(command)[1:]).code == 0
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "megatune", "train", *map(str, given)],
            env={**os.environ, **world, **meet, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]
    assert len(steps_of(output_dir)) == 2


def test_rows_that_changed_since_they_were_prepared_are_told(run_file: Path, rows_file: Path, tmp_path: Path):
    own_rows = tmp_path / "rows.jsonl"
    own_rows.write_text(rows_file.read_text())
    train_on_them = f"data.train={own_rows}"
    assert megatune("prepare", run_file, train_on_them).code == 0
    own_rows.write_text(own_rows.read_text() + '{"text": "one more"}\n')

    one_rank = (train_on_them, "launch.nproc_per_node=1")
    done = megatune("train", run_file, *one_rank, **{**TWO_NODES, "LOCAL_WORLD_SIZE": "1"})

    assert_refused(done, "has to be prepared anew, because", f"{own_rows} changed")
