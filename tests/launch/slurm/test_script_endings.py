"""What a batch script does at the end of its ranks, run by a real bash on a node of made-up programs."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from fake_node import FakeNode
from job_cases import array_of, request_of

from megatune.launch.slurm.history import jobs_of
from megatune.launch.slurm.request import JobRequest
from megatune.launch.slurm.script import render_script


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path / "node")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs/first"
    (folder / "logs").mkdir(parents=True)
    return folder


def job(node: FakeNode, run_folder: Path, site: dict[str, Any] | None = None, **slurm: Any) -> str:
    return render_script(request(node, run_folder, site, **slurm))


def request(node: FakeNode, run_folder: Path, site: dict[str, Any] | None = None, **slurm: Any) -> JobRequest:
    return request_of(
        run_folder.parent,
        {"python": node.python, **(site or {})},
        train={"output_dir": str(run_folder)},
        slurm={"nodes": 2, **slurm},
    )


def requeues(node: FakeNode) -> list[list[str]]:
    return [
        call["arguments"] for call in node.calls("scontrol") if call["arguments"][0] in ("requeue", "update")
    ]


def test_a_run_that_is_done_ends_the_job_with_0(node, run_folder):
    ended = node.run(job(node, run_folder))

    assert ended.code == 0, ended.text
    assert requeues(node) == []
    (training,) = node.trainings()
    assert training["arguments"] == ["-P", "-m", "megatune", "train", f"{run_folder}/submitted.yaml"]


def test_the_log_of_each_start_begins_with_time_job_restart_and_nodes(node, run_folder):
    ended = node.run(job(node, run_folder), SLURM_RESTART_COUNT="3")

    assert ended.text.splitlines()[0].endswith("Z job 12345 restart 3 on n1,n2 ===")
    assert ended.text.startswith("=== 20")


def test_the_ranks_are_told_where_they_meet_and_with_how_many_threads(node, run_folder):
    site = {"network_interface": "ib0", "environment": {"SITE_GREETING": "it's $HOME `x`"}}
    node.run(job(node, run_folder, site, cpus_per_task=6))

    (training,) = node.trainings()
    environment = training["environment"]
    assert environment["MASTER_ADDR"] == "n1"
    assert environment["MASTER_PORT"] == str(20000 + 12345 % 12000)
    assert environment["OMP_NUM_THREADS"] == "6"
    assert environment["MEGATUNE_LAUNCHER"] == "slurm"
    assert environment["NCCL_SOCKET_IFNAME"] == environment["GLOO_SOCKET_IFNAME"] == "ib0"
    assert environment["SITE_GREETING"] == "it's $HOME `x`"
    assert environment["TORCH_EXTENSIONS_DIR"] == f"/tmp/megatune-{os.getuid()}/torch_extensions"


def test_scratch_is_the_value_that_its_variable_has_on_the_node(node, run_folder):
    script = job(node, run_folder, {"scratch": "$LOCAL/ops"})

    node.run(script, LOCAL="/local disk")
    without = node.run(script)

    (training,) = node.trainings()
    assert training["environment"]["TORCH_EXTENSIONS_DIR"].startswith("/local disk/ops/megatune-")
    assert without.code != 0
    assert "the site profile names this variable for scratch" in without.text


def test_srun_starts_one_task_a_gpu_and_ends_all_when_one_fails(node, run_folder):
    node.run(job(node, run_folder, {"mpi": "pmix", "srun_args": ["--cpu-bind=cores"]}))

    (training,) = [call["arguments"] for call in node.calls("srun") if "train" in call["arguments"]]
    options = training[: training.index("bash")]
    assert {
        "--nodes=2",
        "--ntasks=8",
        "--ntasks-per-node=4",
        "--cpus-per-task=8",
        "--kill-on-bad-exit=1",
    } <= set(options)
    assert {"--mpi=pmix", "--cpu-bind=cores", "--wait=60", "--open-mode=append"} <= set(options)
    assert f"--output={run_folder}/logs/rank-%5t.log" in options


def test_a_run_that_saved_and_stopped_is_queued_again(node, run_folder):
    node.ranks_end_with(75)

    ended = node.run(job(node, run_folder))

    assert ended.code == 75
    assert requeues(node) == [["requeue", "12345"]]


def test_slurms_refusal_to_requeue_is_tried_again_and_told(node, run_folder):
    node.ranks_end_with(75)
    node.answer("scontrol.code", "1")
    script = (
        job(node, run_folder)
        .replace("sleep 5", "sleep 0")
        .replace('hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST") ||', "hosts=n1 ||")
    )

    ended = node.run(script)

    assert ended.code == 75
    assert len(requeues(node)) == 3
    assert "hand the run in again with megatune submit" in ended.text


@pytest.mark.parametrize(
    ("slurm", "environment"),
    [
        ({"requeue": False}, {}),
        ({"max_restarts": 2}, {"SLURM_RESTART_COUNT": "2"}),
        ({"max_restarts": 3}, {"SLURM_RESTART_COUNT": "1", "MEGATUNE_RESTARTS": "2"}),
    ],
    ids=["not wanted", "too often by Slurm", "too often together"],
)
def test_a_job_that_may_not_come_back_says_why_and_exits_75(node, run_folder, slurm, environment):
    node.ranks_end_with(75)

    ended = node.run(job(node, run_folder, **slurm), **environment)

    assert ended.code == 75
    assert "not queued again" in ended.text
    assert requeues(node) == []


def test_a_cancelled_job_does_not_come_back(node, run_folder):
    (run_folder / "cancelled").write_text("777\n12345\n")
    node.ranks_end_with(75)

    ended = node.run(job(node, run_folder))

    assert ended.code == 75
    assert "cancelled by the user; not queued again" in ended.text
    assert node.trainings() == []
    assert requeues(node) == []


def test_another_jobs_cancellation_counts_for_that_job_only(node, run_folder):
    (run_folder / "cancelled").write_text("1234\n123456\n")

    assert node.run(job(node, run_folder)).code == 0
    assert len(node.trainings()) == 1


def test_a_port_that_is_taken_is_followed_by_the_next(node, run_folder):
    node.ranks_end_with(98, 98, 0)

    ended = node.run(job(node, run_folder), SLURM_JOB_ID="11999")

    assert ended.code == 0
    ports = [int(training["environment"]["MASTER_PORT"]) for training in node.trainings()]
    assert ports == [31999, 20000, 20001]


def test_three_ports_taken_end_the_job(node, run_folder):
    node.ranks_end_with(98, 98, 98, 0)

    ended = node.run(job(node, run_folder))

    assert ended.code == 1
    assert len(node.trainings()) == 3
    assert "no port was free" in ended.text


@pytest.mark.parametrize("code", [1, 2, 3, 137])
def test_a_failed_run_ends_the_job_with_its_code(node, run_folder, code):
    node.ranks_end_with(code)

    ended = node.run(job(node, run_folder))

    assert ended.code == code
    assert f"the ranks ended with exit code {code}" in ended.text
    assert requeues(node) == []


def test_a_lost_node_is_left_out_of_the_next_start(node, run_folder):
    node.ranks_end_with(1)
    node.answer("sinfo", "n1\nn2\nn3\nn4\n")
    script = job(node, run_folder).replace("lost=$(lost_nodes)", "lost=n2", 1)

    ended = node.run(script)

    assert ended.code == 1
    assert requeues(node) == [["requeue", "12345"], ["update", "JobId=12345", "ExcNodeList=n2"]]


def test_nodes_that_were_left_out_before_stay_left_out(node, run_folder):
    node.ranks_end_with(1)
    node.answer("sinfo", "n1\nn2\nn3\nn4\n")
    node.answer("squeue", "n4\n")
    node.run(job(node, run_folder).replace("lost=$(lost_nodes)", "lost=n2", 1))

    assert requeues(node)[1] == ["update", "JobId=12345", "ExcNodeList=n4,n2"]


def test_a_lost_node_is_waited_for_where_too_few_others_are_left(node, run_folder):
    node.ranks_end_with(1)
    node.answer("sinfo", "n1\nn2\n")
    node.run(job(node, run_folder).replace("lost=$(lost_nodes)", "lost=n2", 1))

    assert requeues(node) == [["requeue", "12345"]]


def test_which_node_is_lost_is_asked_of_the_nodes_of_the_job(node, run_folder):
    node.ranks_end_with(1)
    node.answer("sinfo", "n2\n")
    ended = node.run(job(node, run_folder))

    (asked, *_) = [call["arguments"] for call in node.calls("sinfo")]
    assert "--nodes=n1,n2" in asked
    assert "--states=down,fail,drain,no_respond" in asked
    assert "lost n2" in ended.text


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_rank_that_is_told_to_stop_before_it_listens_counts_as_stopped(node, run_folder, number):
    node.ranks_end_with(f"signal{int(number)}")

    assert node.run(job(node, run_folder)).code == 75
    assert requeues(node) == [["requeue", "12345"]]


def test_the_warning_before_the_time_limit_reaches_the_ranks(node, run_folder):
    node.ranks_end_with("wait")
    process = node.start(job(node, run_folder))
    node.wait_until_ranks_listen()

    process.send_signal(signal.SIGUSR2)
    ended = node.wait(process)

    assert (node.folder / "got").read_text() == str(int(signal.SIGUSR2))
    assert ended.code == 75
    assert requeues(node) == [["requeue", "12345"]]


def test_a_job_that_slurm_ends_itself_is_not_queued_again(node, run_folder):
    node.ranks_end_with("wait")
    process = node.start(job(node, run_folder))
    node.wait_until_ranks_listen()

    os.killpg(process.pid, signal.SIGTERM)  # scancel: all processes of the job get it
    ended = node.wait(process)

    assert ended.code == 75
    assert "Slurm ends this job itself" in ended.text
    assert requeues(node) == []


def test_ops_are_compiled_and_nodes_checked_before_the_training(node, run_folder):
    script = render_script(
        request_of(
            run_folder.parent,
            {"python": node.python},
            train={"output_dir": str(run_folder)},
            parallel={"offload": "optimizer"},
            slurm={"nodes": 2, "preflight": True},
        )
    )

    assert node.run(script).code == 0

    steps = [call["arguments"][2:4] for call in node.calls("python")]
    assert steps == [
        ["megatune.launch.slurm.prebuild", "cpu_adam"],
        ["megatune", "doctor"],
        ["megatune.data.mpi_check"],
        ["megatune", "prepare"],
        ["megatune", "train"],
    ]
    first = node.calls("srun")[0]["arguments"]
    assert {"--ntasks=2", "--ntasks-per-node=1"} <= set(first), "ops are built once a node"


def test_nodes_that_are_not_fit_get_no_training(node, run_folder):
    node.answer("python.other", "1")

    ended = node.run(job(node, run_folder, preflight=True))

    assert ended.code == 1
    assert "the nodes are not fit" in ended.text
    assert node.trainings() == []


ONE_TASK = {"--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--cpus-per-task=32"}
BOTH_NODES = {
    "--mpi=pmix",
    "--nodes=2",
    "--ntasks=32",
    "--ntasks-per-node=16",
    "--cpus-per-task=1",
    "--gres=none",
}


@pytest.mark.parametrize(
    ("nodes", "mpi", "meets", "expected", "words"),
    [
        (1, None, "0", ONE_TASK, ""),
        (2, None, "0", BOTH_NODES, "on all 2 nodes together, over MPI (pmix)"),
        (2, "pmi2", "0", BOTH_NODES - {"--mpi=pmix"} | {"--mpi=pmi2"}, "over MPI (pmi2)"),
        (2, None, "1", ONE_TASK, "on one node, for processes of several do not meet over MPI: see"),
        (2, "none", "0", ONE_TASK, ""),
    ],
)
def test_the_data_is_prepared_on_all_nodes_where_their_processes_meet(
    node, run_folder, nodes, mpi, meets, expected, words
):
    site = {"srun_args": ["--cpu-bind=none"], "environment": {"SITE_GREETING": "hello"}}
    node.answer("python.meets", meets)
    ended = node.run(job(node, run_folder, site if mpi is None else {**site, "mpi": mpi}, nodes=nodes))

    assert (ended.code, words in ended.text) == (0, True)
    assert ("meet over MPI" in ended.text) == (meets == "1")
    (prepared,) = [call["arguments"] for call in node.calls("srun") if "prepare" in call["arguments"]]
    options = prepared[: prepared.index(node.python)]
    assert expected <= set(options)
    assert "--cpu-bind=none" in options
    (process,) = [call for call in node.calls("python") if "prepare" in call["arguments"]]
    assert process["arguments"] == ["-P", "-m", "megatune", "prepare", f"{run_folder}/submitted.yaml"]
    assert process["environment"]["SITE_GREETING"] == "hello"


def test_a_job_that_is_started_again_does_not_ask_for_a_meeting(node, run_folder):
    node.answer("python.meets", "0")

    ended = node.run(job(node, run_folder, nodes=2), SLURM_RESTART_COUNT="1")

    assert ended.code == 0
    assert not any("megatune.data.mpi_check" in call["arguments"] for call in node.calls("srun"))
    (prepared,) = [call["arguments"] for call in node.calls("srun") if "prepare" in call["arguments"]]
    assert set(prepared) >= ONE_TASK


@pytest.mark.parametrize("code", [1, 2])
def test_data_that_cannot_be_prepared_ends_the_job_with_its_code(node, run_folder, code):
    node.answer("python.other", str(code))

    ended = node.run(job(node, run_folder))

    assert ended.code == code
    assert f"the data could not be prepared (exit code {code})" in ended.text
    assert node.trainings() == []
    assert requeues(node) == []


def test_a_module_that_cannot_be_loaded_ends_the_job(node, run_folder):
    ended = node.run(job(node, run_folder, {"modules": ["cuda/12.8"]}))

    assert ended.code == 1
    assert "module load failed" in ended.text
    assert node.trainings() == []


def test_files_of_the_site_are_sourced_before_the_ranks_start(node, run_folder, tmp_path):
    activate = tmp_path / "my activate"
    activate.write_text("echo $NOT_SET_ANYWHERE; export SITE_SOURCED=yes\n")

    node.run(job(node, run_folder, {"source": [str(activate)]}))

    (training,) = node.trainings()
    assert training["environment"]["SITE_SOURCED"] == "yes"


@pytest.mark.parametrize(("answer", "cluster"), [("678\n", None), ("Welcome to the site!\n678;big\n", "big")])
def test_where_requeueing_is_forbidden_a_new_job_waits_for_this_one(node, run_folder, answer, cluster):
    node.ranks_end_with(75)
    node.answer("sbatch", answer)

    ended = node.run(job(node, run_folder, {"requeue": "resubmit"}), SLURM_RESTART_COUNT="1")

    assert ended.code == 75
    (handed_in,) = node.calls("sbatch")
    assert handed_in["arguments"][:3] == ["--parsable", "--export=ALL", "--dependency=afterany:12345"]
    assert handed_in["arguments"][-1] == f"{run_folder}/job.sbatch"
    assert handed_in["environment"]["MEGATUNE_RESTARTS"] == "2"
    assert "SLURM_RESTART_COUNT" not in handed_in["environment"]
    (known,) = jobs_of(run_folder)
    assert (known.job_id, known.depends_on, known.time_limit_s) == ("678", "12345", 4 * 3600)
    assert known.cluster == cluster


def test_a_new_job_that_sbatch_refuses_is_told(node, run_folder):
    node.ranks_end_with(75)
    node.answer("sbatch", "sbatch: error: no\n")

    ended = node.run(job(node, run_folder, {"requeue": "resubmit"}))

    assert "hand the run in again with megatune submit" in ended.text
    assert jobs_of(run_folder) == []


def test_a_task_of_an_array_trains_its_own_run_and_requeues_itself_alone(node, run_folder):
    names = ["a b", "c%d"]
    requests = array_of(run_folder.parent, names, {"python": node.python})
    script = render_script(requests).replace("/home/me/project/runs", str(run_folder.parent))
    for name in names:
        (run_folder.parent / name / "logs").mkdir(parents=True)
    node.ranks_end_with(75)

    node.run(script, SLURM_ARRAY_JOB_ID="12345", SLURM_ARRAY_TASK_ID="1")

    (training,) = node.trainings()
    assert training["arguments"][-1] == f"{run_folder.parent}/c%d/submitted.yaml"
    assert requeues(node) == [["requeue", "12345_1"]]
    (output,) = [
        argument
        for call in node.calls("srun")
        for argument in call["arguments"]
        if argument.startswith("--output=") and "rank" in argument
    ]
    assert output == f"--output={run_folder.parent}/c%%d/logs/rank-%5t.log", "a % of the folder is no pattern"
    link = run_folder.parent / "c%d/logs/job-12345_1.log"
    assert link.readlink() == run_folder.parent / "a b/logs/job-12345_1.log"
