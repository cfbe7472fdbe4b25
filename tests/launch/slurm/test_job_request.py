"""From run file and site profile to one request: what wins, what is worked out, what is refused."""

from pathlib import Path
from typing import Any

import pytest
from job_cases import WORKING_DIR, array_of, request_of

from megatune.errors import ConfigError
from megatune.launch.slurm.request import join_requests

DS_CONFIGS = Path(__file__).parents[3] / "ds_configs"
SITE = {"partition": "site", "cpus_per_node": 64, "gpus_per_node": 8, "mem_per_node": "100G"}


def refusal(folder: Path, site: dict[str, Any] | None = None, **sections: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        request_of(folder, site, **sections)
    return caught.value.problems


def test_the_run_file_wins_over_the_site(tmp_path):
    request = request_of(tmp_path, SITE, slurm={"partition": "mine", "mem": "7G", "gpus_per_node": 2})

    assert (request.partition, request.mem, request.tasks_per_node) == ("mine", "7G", 2)


def test_the_site_fills_what_the_run_file_leaves_out(tmp_path):
    request = request_of(tmp_path, SITE, slurm={"gpus_per_node": None, "cpus_per_task": None})

    assert (request.partition, request.mem, request.tasks_per_node) == ("site", "100G", 8)
    assert request.cpus_per_task == 8, "the cores of a node, shared out over its ranks"


def test_a_run_without_a_slurm_section_is_asked_for_what_is_missing(tmp_path):
    problems = refusal(tmp_path, slurm={"gpus_per_node": None, "cpus_per_task": None})

    assert any("slurm.gpus_per_node is missing" in problem for problem in problems)
    assert any("slurm.cpus_per_task is missing" in problem for problem in problems)


@pytest.mark.parametrize(("gpus", "ops"), [(2, ("quantizer",)), (0, ())])
def test_kernels_of_quantized_messages_are_built_on_nodes_with_gpus(tmp_path, gpus, ops):
    policy = DS_CONFIGS / "zero3_zeropp.json"
    request = request_of(
        tmp_path, deepspeed=str(policy), slurm={"gpus_per_node": gpus}, launch={"nproc_per_node": 2}
    )

    assert request.ops == ops


def test_without_gpus_the_run_file_says_how_many_ranks(tmp_path):
    with_number = request_of(tmp_path, launch={"nproc_per_node": 6}, slurm={"gpus_per_node": 0})
    (problem,) = refusal(tmp_path, slurm={"gpus_per_node": 0})

    assert (with_number.tasks_per_node, with_number.gpus) == (6, None)
    assert "launch.nproc_per_node is auto" in problem


def test_all_problems_of_a_job_are_told_at_once(tmp_path):
    problems = refusal(
        tmp_path,
        launch={"launcher": "torchrun"},
        parallel={"tp_size": 3},
        slurm={"time": "00:04:00", "partition": "a b", "job_name": "x`y`", "srun_args": ["--pty"]},
    )

    text = "\n".join(problems)
    assert len(problems) == 6
    for part in (
        "launch.launcher = torchrun",
        "parallel.tp_size = 3 does not divide the 4 ranks",
        "slurm.time = 00:04:00 is not longer than slurm.signal_delay_s = 300",
        "slurm.partition is 'a b'",
        "slurm.job_name is",
        "--pty is set by megatune itself",
    ):
        assert part in text


def test_a_batch_that_does_not_divide_is_found_before_the_queue(tmp_path):
    (problem,) = refusal(tmp_path, train={"global_batch_size": 6})

    assert "train.global_batch_size = 6" in problem


def test_a_layout_the_engine_refuses_is_found_before_the_queue(tmp_path):
    (problem,) = refusal(tmp_path, parallel={"offload": "optimizer", "keep_gathered": True})

    assert "parallel.keep_gathered" in problem


@pytest.mark.parametrize("name", ['a"b', "a'b", "a\\b", "a`b`", "a$HOME", "a#b"])
def test_a_run_folder_that_sbatch_cannot_be_given_is_refused(tmp_path, name):
    (problem,) = refusal(tmp_path, train={"output_dir": f"/runs/{name}"})

    assert "train.output_dir" in problem
    assert "sbatch would not take it" in problem


def test_a_job_in_a_container_uses_the_containers_python_and_sees_its_folders(tmp_path):
    container = {"runtime": "pyxis", "image": "/i.sqsh", "python": "/opt/python"}
    inside = request_of(tmp_path, {"container": container, "python": "/site/python"})
    outside = request_of(
        tmp_path, {"container": container, "python": "/site/python"}, slurm={"container": "none"}
    )

    assert (inside.python, outside.python) == ("/opt/python", "/site/python")
    assert outside.container is None


def test_a_folder_that_cannot_be_mounted_is_refused(tmp_path):
    container = {"runtime": "pyxis", "image": "/i.sqsh"}
    (problem,) = refusal(tmp_path, {"container": container}, train={"output_dir": "/runs/a,b"})

    assert "train.output_dir" in problem


def test_the_job_is_named_after_the_run_folder(tmp_path):
    request = request_of(tmp_path, train={"output_dir": "/runs/my run é;x"})

    assert request.job_name == "my run éx"


def test_relative_paths_begin_where_the_run_was_submitted(tmp_path):
    assert request_of(tmp_path).working_dir == str(WORKING_DIR)


def test_runs_of_an_array_that_ask_for_other_nodes_are_named(tmp_path):
    first = request_of(tmp_path, train={"output_dir": "/runs/a"})
    other = request_of(tmp_path, train={"output_dir": "/runs/b"}, slurm={"nodes": 2})
    with pytest.raises(ConfigError, match="nodes is 1 for /runs/a and 2 for /runs/b"):
        join_requests([first, other])


def test_runs_of_an_array_that_share_a_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"several runs of the array have train.output_dir = .*runs/a"):
        array_of(tmp_path, ["a", "a"])
