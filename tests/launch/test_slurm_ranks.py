from dataclasses import astuple

import pytest

from megatune.errors import LaunchError
from megatune.launch.slurm_ranks import slurm_job, slurm_rank, step_size

UNEVEN = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "1",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_JOB_NODELIST": "n[01-04]",
    "SLURM_STEP_NODELIST": "n[01-04]",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
}


def task(rank, node, local_rank, **changes):
    place = {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(node), "SLURM_LOCALID": str(local_rank)}
    return {**UNEVEN, **place, **changes}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        (task(0, 0, 0), (0, 0, 7, 2)),
        (task(3, 1, 1), (3, 1, 7, 2)),
        (task(6, 3, 0), (6, 0, 7, 1)),
        # Cyclic distribution: neighbours are on different nodes.
        (task(4, 0, 1), (4, 1, 7, 2)),
    ],
)
def test_a_task_of_srun_is_a_rank(environ, place):
    found = slurm_rank(environ, whole_job=True)

    assert astuple(found) == (*place, "n01", 20000 + 1234 + 1, "slurm", 4)


def test_the_port_stays_in_range_whatever_the_job_number():
    for job in (0, 11_999, 12_000, 4_294_967_295):
        found = slurm_rank(task(0, 0, 0, SLURM_JOB_ID=str(job)), whole_job=False)
        assert 20000 <= found.master_port < 32000


def test_a_given_meeting_point_wins():
    found = slurm_rank(task(0, 0, 0, MASTER_ADDR="10.0.0.1", MASTER_PORT="20555"), whole_job=True)
    assert (found.master_addr, found.master_port) == ("10.0.0.1", 20555)


def test_a_step_on_some_nodes_of_the_job_is_right_by_hand_and_wrong_in_a_submitted_job():
    part = {
        "SLURM_STEP_NODELIST": "n03",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }
    environ = task(1, 0, 1, **part)

    assert slurm_rank(environ, whole_job=False).master_addr == "n03"
    with pytest.raises(LaunchError, match=r"runs on 1 node\(s\), but Slurm granted the job 4"):
        slurm_rank(environ, whole_job=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SLURM_NTASKS": "8"}, "SLURM_NTASKS=8, but SLURM_STEP_NUM_TASKS=7"),
        ({"WORLD_SIZE": "16"}, "WORLD_SIZE=16"),
        ({"SLURM_PROCID": "7"}, "SLURM_PROCID=7 must be below"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x4)"}, "counts 8 tasks"),
        ({"SLURM_STEP_NODELIST": "n[01-03]"}, "the list of nodes has 3"),
        ({"SLURM_NODEID": "4"}, "SLURM_NODEID=4 must be below 4"),
        ({"SLURM_LOCALID": "2"}, "SLURM_LOCALID=2 must be below 2"),
        ({"SLURM_NODEID": "1"}, "task 0 is on node 1"),
        ({"SLURM_HET_SIZE": "2"}, "heterogeneous"),
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID='x' must be a whole number"),
        ({"SLURM_PROCID": ""}, "SLURM_PROCID is not set"),
        ({"SLURM_PROCID": "9" * 5000}, "must be a whole number"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999"),
        ({"SLURM_STEP_TASKS_PER_NODE": ""}, "SLURM_STEP_TASKS_PER_NODE is not set"),
    ],
)
def test_variables_that_contradict_each_other_are_named(changes, words):
    with pytest.raises(LaunchError) as told:
        slurm_rank(task(0, 0, 0, **changes), whole_job=True)
    assert words in str(told.value)


def test_all_contradictions_are_told_at_once():
    with pytest.raises(LaunchError) as told:
        slurm_rank(task(9, 0, 5, SLURM_NTASKS="8"), whole_job=True)
    assert all(word in str(told.value) for word in ("SLURM_NTASKS=8", "SLURM_PROCID=9", "SLURM_LOCALID=5"))


def test_steps_that_are_none_of_srun_have_no_size():
    assert step_size(task(0, 0, 0)) == 7
    assert step_size({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "7", "SLURM_PROCID": "0"}) is None
    assert step_size(task(0, 0, 0, SLURM_STEP_ID="²")) == 7
    for special in range(0xFFFFFFFA, 0xFFFFFFFE):
        assert step_size(task(0, 0, 0, SLURM_STEP_ID=str(special))) is None


@pytest.mark.parametrize(
    ("environ", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "5"}, ("5", 0, None)),
        ({"SLURM_JOB_ID": "5", "SLURM_RESTART_COUNT": "3"}, ("5", 3, None)),
        (
            {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"},
            ("5_2", 0, None),
        ),
        ({"SLURM_JOB_ID": "5", "SLURM_JOB_END_TIME": "1700000000"}, ("5", 0, 1700000000)),
        ({"SLURM_JOB_END_TIME": "1700000000"}, (None, 0, 1700000000)),
    ],
)
def test_the_allocation_is_known_by_its_variables(environ, job):
    found = slurm_job(environ)
    assert (found and astuple(found)) == job


def test_an_end_time_that_is_none_is_refused():
    with pytest.raises(LaunchError, match="SLURM_JOB_END_TIME='soon'"):
        slurm_job({"SLURM_JOB_ID": "5", "SLURM_JOB_END_TIME": "soon"})
