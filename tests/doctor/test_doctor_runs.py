"""The whole ladder on real ranks: fit machines, and one thing wrong at a time."""

import json
import re
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from command_line import assert_refused, megatune

from megatune.config import load_run
from megatune.doctor.job import choose_num_ranks as doctor_ranks
from megatune.plan.links import links_json, read_links
from megatune.train.job import choose_num_ranks as train_ranks

pytestmark = pytest.mark.world

COLLECTIVE = ["process_group", "collectives", "pairs"]


def test_two_local_ranks_pass_and_leave_their_report_and_links(run_file, output_dir, tmp_path):
    cache = tmp_path / "cache"
    done = megatune("doctor", run_file, "launch.nproc_per_node=2", "--json", MEGATUNE_CACHE=str(cache))

    assert done.code == 0, done.text
    answer = json.loads(done.out)
    assert answer["passed"] and answer["world_size"] == 2 and answer["schema"] == 1
    measured = {rung["name"]: rung["verdict"] for rung in answer["rungs"]}
    assert measured.pop("slurm") == measured.pop("gpus") == "n/a"
    assert set(measured.values()) <= {"ok", "warn"}
    assert json.loads((output_dir / "doctor.json").read_text()) == answer
    (times,) = next(rung["measured"] for rung in answer["rungs"] if rung["name"] == "pairs").values()
    assert len(times) == 3 and all(seconds > 0 for seconds in times.values())
    (host,) = answer["nodes"]
    links = read_links(cache / "links.json", host)
    # On a machine that others use no line may go through the times: then both say n/a.
    assert links is not None and links.inter_node is None
    assert links_json(links) == answer["links"]
    assert not list(output_dir.glob(".doctor-*"))


def test_a_checkpoint_is_counted_at_twelve_bytes_a_parameter(run_file):
    done = megatune("doctor", run_file, "--json")
    sgd = megatune("doctor", run_file, "train.optimizer=sgd", "--json")

    needed = [
        next(rung for rung in json.loads(answer.out)["rungs"] if rung["name"] == "disk")
        for answer in (done, sgd)
    ]
    adam_bytes, sgd_bytes = (rung["measured"]["checkpoint_bytes"] for rung in needed)
    assert adam_bytes == 3 * sgd_bytes > 0


@pytest.mark.parametrize(("cores", "tp_size", "ranks"), [(5, 2, 4), (2, 3, 3), (4, 1, 4)])
def test_as_many_ranks_answer_as_train_would_start(run_file, monkeypatch, cores, tp_size, ranks):
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(cores)))
    loaded = load_run(run_file, ["launch.nproc_per_node=auto", f"parallel.tp_size={tp_size}"])
    assert doctor_ranks(loaded) == train_ranks(loaded.run) == ranks
    assert doctor_ranks(None) == cores


def test_people_get_a_table_and_the_links(tmp_path):
    done = megatune("doctor", MEGATUNE_CACHE=str(tmp_path))

    assert done.code == 0, done.text
    assert "rendezvous" in done.out and "process_group" in done.out
    assert done.out.rstrip().endswith("nothing failed")


def test_four_nodes_play_all_pairs(ranks):
    job = ranks(4, node_names=True)
    started = [job.start(rank, "--nodes", 4) for rank in range(4)]
    first, *others = [job.finish(process) for process in started]

    # Four ranks on a busy machine may well find one of their links slow: that is a verdict, too.
    assert set(first.verdicts("fail")) <= {"pairs"}, first.err
    assert first.code == len(first.verdicts("fail"))
    assert [other.code for other in others] == [first.code] * 3
    assert all(other.out == "" for other in others)
    assert first.report["nodes"] == ["n1", "n2", "n3", "n4"]
    assert len(first.rung("pairs")["measured"]) == 6
    assert first.report["links"]["inter_node"]["bytes_per_s"] > 0
    assert first.report["links"]["intra_node"] is None


def test_fewer_nodes_than_asked_for_fail(ranks):
    job = ranks(1, node_names=True)
    done = job.finish(job.start(0, "--nodes", 2))

    assert done.code == 1
    assert done.verdicts("fail") == ["rendezvous"]
    assert "1 node(s) answered (n1), --nodes asked for 2" in done.rung("rendezvous")["message"]


def test_a_rank_that_never_comes_is_named_within_the_limit(ranks):
    job = ranks(2)
    done = job.finish(job.start(0, "--limit", 12))

    assert done.code == 1
    assert re.search(r"missing after \d+ s: rank 1 on", done.rung("rendezvous")["message"])
    assert {done.rung(name)["verdict"] for name in COLLECTIVE} == {"n/a"}


def test_a_first_rank_that_never_comes_is_named_by_the_others(ranks):
    job = ranks(2)
    done = job.finish(job.start(1, "--limit", 12))

    assert done.code == 1
    assert done.out == ""
    assert re.search(r"missing after \d+ s: rank 0 on 127.0.0.1", done.err)
    assert "Traceback" not in done.err


def test_the_host_of_a_missing_rank_comes_from_slurm(ranks):
    job = ranks(2, node_names=True)
    layout = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    done = job.finish(job.start(0, "--limit", 12, **layout))

    assert "rank 1 on n2" in done.rung("rendezvous")["message"]
    assert done.report["exclude"] == "--exclude=n2"


STOPPED = """
    import os, signal, sys
    from megatune.cli import main
    from megatune.doctor import {module}
    {module}.{function} = lambda *arguments: os.kill(os.getpid(), signal.SIGSTOP)
    sys.argv = ["megatune", "doctor", *sys.argv[1:]]
    main()
"""


def stopping(tmp_path: Path, module: str, function: str) -> list[str]:
    """The doctor as a program that stops itself where it would call this function."""
    program = tmp_path / f"stops_in_{function}.py"
    program.write_text(textwrap.dedent(STOPPED.format(module=module, function=function)))
    return [sys.executable, str(program)]


@pytest.mark.parametrize(
    ("module", "function", "rung"),
    [("group", "measure_collectives", "collectives"), ("clock", "measure_clock", "clock")],
)
def test_a_rank_that_is_stopped_is_named_with_its_rung(ranks, tmp_path, module, function, rung):
    job = ranks(3, node_names=True)
    job.start(2, "--limit", 20, command=stopping(tmp_path, module, function))
    first, second = (job.start(rank, "--limit", 20) for rank in (0, 1))
    done = job.finish(first)

    assert done.code == 1, done.err
    found = done.rung(rung)
    assert found["verdict"] == "fail"
    assert f"at {rung}: rank 2 on n3" in found["message"]
    assert done.rung("pairs")["verdict"] == "n/a"
    assert done.report["exclude"] == "--exclude=n3"
    assert job.finish(second).code == 1


def test_a_first_rank_that_hangs_ends_itself_and_names_its_rung(ranks, tmp_path):
    """Its main thread sleeps in a call; a stopped one could say nothing."""
    program = tmp_path / "hangs.py"
    program.write_text(
        textwrap.dedent("""
        import sys, time
        from megatune.cli import main
        from megatune.doctor import versions
        versions.measure_versions = lambda asks_git: time.sleep(100)
        sys.argv = ["megatune", "doctor", *sys.argv[1:]]
        main()
        """)
    )
    job = ranks(2)
    other = job.start(1, "--limit", 10)
    done = job.finish(job.start(0, "--limit", 10, command=[sys.executable, str(program)]))

    assert done.code == 1
    assert "megatune: versions: fail" in done.err
    assert "time is over" in done.err and "in <lambda>" in done.err
    assert job.finish(other).code == 1


def test_a_folder_that_is_not_shared_is_found(ranks, run_file, tmp_path):
    """A relative output_dir and two working folders: two nodes that each have a disk of their own."""
    job = ranks(2, node_names=True)
    folders = [tmp_path / "disk-1", tmp_path / "disk-2"]
    for folder in folders:
        folder.mkdir()
    started = [job.start(rank, run_file, "train.output_dir=run", cwd=folders[rank]) for rank in (0, 1)]
    done = job.finish(started[0])

    assert done.code == 1
    assert done.verdicts("fail") == ["disk"]
    assert "n2 does not see what n1 wrote" in done.rung("disk")["message"]


def test_a_read_only_folder_is_found(ranks, run_file):
    job = ranks(1)
    done = job.finish(job.start(0, run_file, "train.output_dir=/proc/run"))

    assert done.code == 1
    assert done.verdicts("fail") == ["disk"]
    assert "cannot write to /proc/run" in done.rung("disk")["message"]


def test_another_version_on_one_node_is_found(ranks, tmp_path):
    other = tmp_path / "other" / "transformers-9.9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 9.9.9\n")
    job = ranks(3, node_names=True)
    started = [
        job.start(rank, **({"PYTHONPATH": str(other.parent)} if rank == 1 else {})) for rank in range(3)
    ]
    done = job.finish(started[0])

    assert done.code == 1
    # On a busy machine the speeds of the three may differ for real: then slow ones are at fault too, and no option
    # names two nodes of three.
    failed = set(done.verdicts("fail"))
    assert failed - {"pairs"} == {"versions"}
    assert "9.9.9 on n2 (rank 1)" in done.rung("versions")["message"]
    if "pairs" not in failed:
        assert done.report["exclude"] == "--exclude=n2"


def test_a_clock_five_seconds_ahead_is_found_and_only_warns(ranks, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import time\nnow = time.time\ntime.time = lambda: now() + 5\n"
    )
    job = ranks(2, node_names=True)
    started = [job.start(rank, **({"PYTHONPATH": str(tmp_path)} if rank == 1 else {})) for rank in (0, 1)]
    done = job.finish(started[0])

    assert done.code == 0, done.err
    assert done.rung("clock")["verdict"] == "warn"
    assert "the clock of n2 is 5.0 s ahead of that of n1" in done.rung("clock")["message"]


def test_an_interface_that_is_not_there_is_found(ranks):
    job = ranks(1)
    done = job.finish(job.start(0, GLOO_SOCKET_IFNAME="ib7"))

    assert done.code == 1
    assert "GLOO_SOCKET_IFNAME=ib7 names no interface" in done.rung("names")["message"]


def test_a_lock_that_a_killed_build_left_is_found_and_stays(ranks, tmp_path):
    lock = tmp_path / "torch_extensions" / "megatune-1" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    job = ranks(1)
    done = job.finish(job.start(0, TORCH_EXTENSIONS_DIR=str(tmp_path / "torch_extensions")))

    assert done.code == 0
    assert done.rung("build_locks")["verdict"] == "warn"
    assert str(lock) in done.rung("build_locks")["fix"]
    assert lock.exists()


def test_a_port_that_is_taken_is_told_to_the_job_script(ranks):
    job = ranks(1)
    with socket.socket() as other:
        other.bind(("0.0.0.0", job.port))
        other.listen()
        under_slurm = job.finish(job.start(0, MEGATUNE_LAUNCHER="slurm"))
        by_hand = job.finish(job.start(0))

    assert under_slurm.code == 98
    assert by_hand.code == 1 and f"port {job.port}" in by_hand.err


def test_torchrun_and_its_own_store_work(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "megatune", "doctor", "--json"],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["world_size"] == 2


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="there is no mpirun")
def test_mpirun_carries_the_host_facts(tmp_path, monkeypatch):
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    program = tmp_path / "no_second_look.py"
    # Over the store every rank would now say that it has no versions: what is reported came over MPI.
    program.write_text(
        textwrap.dedent("""
        from megatune.cli import main
        from megatune.doctor import climb
        known = climb.FirstRank._take
        def take(self, rung):
            assert rung.name != "versions", "they came over MPI"
            known(self, rung)
        climb.FirstRank._take = take
        main()
        """)
    )
    done = subprocess.run(
        ["mpirun", "--oversubscribe", "-n", "2", sys.executable, str(program), "doctor", "--json"],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    versions = next(rung for rung in json.loads(done.stdout)["rungs"] if rung["name"] == "versions")
    assert versions["verdict"] == "ok" and set(versions["by_rank"]) == {"0", "1"}


def test_impossible_limits_and_nodes_are_refused():
    assert_refused(megatune("doctor", "--limit", 1), "--limit is 1")
    assert_refused(megatune("doctor", "--nodes", 0), "--nodes is 0")
    assert_refused(megatune("doctor", "--nodes", 2), "srun --nodes=2", "megatune doctor --nodes 2")
    assert_refused(megatune("doctor", "missing.yaml"), "no such file")
