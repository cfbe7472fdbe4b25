"""`megatune lint` through the real command line."""

import json

import pytest
import yaml
from command_line import assert_refused, megatune

RIGHT = """\
#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@300
set -e
export OMP_NUM_THREADS=8
trap 'kill -USR2 $pid' USR2
srun --kill-on-bad-exit=1 megatune train run.yaml & pid=$!
wait $pid
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "job.sbatch"
    path.write_text(RIGHT)
    return path


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "run.yaml"
    sections = {
        "model": {"model_name_or_path": "some/model"},
        "data": {"train": "train.jsonl"},
        "train": {"output_dir": "out"},
        "slurm": {"nodes": 2, "gpus_per_node": 4},
        "checkpoint": {"save_steps": 10},
    }
    path.write_text(yaml.safe_dump(sections))
    return path


def test_a_script_without_mistakes_ends_with_0(script):
    done = megatune("lint", script)

    assert (done.code, done.out.strip()) == (0, f"{script}: nothing found")


def test_a_warning_is_told_and_ends_with_0(script):
    script.write_text(RIGHT.replace("#SBATCH --cpus-per-task=8\n", ""))
    done = megatune("lint", script)

    assert done.code == 0, done.text
    assert "warning: No --cpus-per-task" in done.text


def test_an_error_ends_with_1_and_names_the_line(script):
    script.write_text(RIGHT.replace("--gpus-per-node=4", "--gpus-per-node=8"))
    done = megatune("lint", script)

    assert done.code == 1
    assert "error: line 3: 4 tasks a node and 8 GPUs" in done.text


def test_json_holds_every_finding(script):
    script.write_text(RIGHT.replace("--gpus-per-node=4", "--gpus-per-node=8"))
    answer = json.loads(megatune("lint", script, "--json").out)

    assert (answer["schema"], answer["script"], answer["passed"]) == (1, str(script), False)
    assert [finding["rule"] for finding in answer["findings"]] == ["tasks-and-gpus"]
    assert answer["findings"][0]["line"] == 3


def test_the_run_file_tells_what_the_script_does_not(script, run_file):
    agreeing = megatune("lint", script, "--run", run_file)
    script.write_text(RIGHT.replace("--nodes=2", "--nodes=3"))
    differing = megatune("lint", script, "--run", run_file)

    assert agreeing.code == 0, agreeing.text
    assert differing.code == 1
    assert "The script starts 12 ranks, the run is made for 8." in differing.text


def test_what_cannot_be_read_ends_with_2(script, run_file, tmp_path):
    assert_refused(megatune("lint", tmp_path / "none.sbatch"), "none.sbatch cannot be read")
    script.write_bytes(b"\xff\xfe")
    assert_refused(megatune("lint", script), "is no text")
    run_file.write_text("nonsense: 1\n")
    script.write_text(RIGHT)
    assert_refused(megatune("lint", script, "--run", run_file), "nonsense")
