"""The doctor's judgement on planted clusters: each with one fault, which must be named."""

import pytest

from megatune.doctor.clock import judge_clock
from megatune.doctor.disk import judge_disk
from megatune.doctor.group import judge_collectives, judge_group
from megatune.doctor.leftovers import ask_slurm, judge_build_locks, judge_slurm
from megatune.doctor.matmul import judge_matmul
from megatune.doctor.memory import judge_cpus, judge_host_memory, judge_shared_memory
from megatune.doctor.network import all_lead_back, interface_exists, judge_names, judge_ports, route_interface
from megatune.doctor.presence import Seat, judge_presence, missing_nodes, name_missing
from megatune.doctor.verdict import Finding, Group, RungResult, exclude_option, report
from megatune.doctor.versions import judge_versions
from megatune.errors import SubmitError
from megatune.launch.slurm.command import Answer

GIB = 2**30


def cluster(num_nodes: int = 4, per_node: int = 2) -> Group:
    nodes = {rank: f"n{rank // per_node + 1}" for rank in range(num_nodes * per_node)}
    return Group(world_size=len(nodes), nodes=nodes)


def versions(**changes: str | None) -> dict[str, str | None]:
    same = {"python": "3.11.7", "torch": "2.13.0", "deepspeed": "0.19.8", "kernel": "6.1", "driver": "550.54"}
    return {**same, "commit": None, "prefix": "/env", **changes}


def test_one_host_with_another_torch_is_named_and_excluded():
    who = cluster()
    answers = {rank: versions(torch="2.12.1" if who.nodes[rank] == "n3" else "2.13.0") for rank in who.nodes}

    finding = judge_versions(answers, who)

    assert finding.verdict == "fail"
    assert "torch is 2.13.0 on most ranks, but 2.12.1 on n3 (rank 4, 5)" in finding.message
    assert finding.nodes_at_fault == ("n3",)
    assert exclude_option([RungResult(name="versions", seconds=0, finding=finding)], who.node_names()) == (
        "--exclude=n3"
    )


def test_a_missing_package_deviates_and_a_newer_kernel_only_warns():
    who = cluster(2, 1)

    missing = judge_versions({0: versions(), 1: versions(deepspeed=None)}, who)
    kernel = judge_versions({0: versions(), 1: versions(kernel="6.2", driver="560.1")}, who)

    assert missing.verdict == "fail" and "none on n2" in missing.message
    assert kernel.verdict == "warn" and "kernel" in kernel.message and "driver" in kernel.message


def test_a_commit_that_only_first_ranks_know_is_compared_between_them_alone():
    who = cluster(3, 2)
    commits = {0: "aaa", 1: None, 2: "aaa", 3: None, 4: "bbb", 5: None}

    finding = judge_versions({rank: versions(commit=commit) for rank, commit in commits.items()}, who)

    assert "commit is aaa on most ranks, but bbb on n3 (rank 4)" in finding.message


def test_a_missing_rank_is_named_with_the_host_that_slurm_promised():
    seats = {rank: Seat(node=f"n{rank + 1}", local_rank=0, local_world_size=1) for rank in (0, 1, 3)}
    missing = missing_nodes(seats, 4, ["n1", "n2", "n3", "n4"])
    who = Group(world_size=4, nodes={rank: seat.node for rank, seat in seats.items()})

    finding = judge_presence(who, missing, waited_s=60, asked_nodes=None, seconds=dict.fromkeys(seats, 1.0))

    assert finding.verdict == "fail"
    assert "missing after 60 s: rank 2 on n3; 3 of 4 ranks answered" in finding.message
    assert finding.nodes_at_fault == ("n3",)


def test_a_missing_rank_is_placed_beside_its_neighbours_without_a_scheduler():
    seats = {
        0: Seat(node="a", local_rank=0, local_world_size=2),
        3: Seat(node="b", local_rank=1, local_world_size=2),
    }

    assert missing_nodes(seats, 6, None) == {1: "a", 2: "b", 4: None, 5: None}
    # Laid out otherwise than Slurm's list says (--distribution=cyclic): the list is not believed.
    assert missing_nodes(seats, 6, ["a", "a", "a", "c", "c", "c"])[4] is None
    assert name_missing({1: "a", 2: "b", 4: None, 5: None}) == (
        "rank 1 on a; rank 2 on b; ranks 4, 5 on an unknown host"
    )


def test_fewer_nodes_than_asked_for_fail():
    finding = judge_presence(cluster(2, 1), {}, waited_s=60, asked_nodes=3, seconds={0: 0.1, 1: 0.2})

    assert finding.verdict == "fail"
    assert "2 node(s) answered (n1, n2), --nodes asked for 3" in finding.message


def test_a_clock_five_seconds_off_warns_and_says_which_way():
    who = cluster(3, 1)
    skews = {0: 0.0, 1: 0.002, 2: -5.0}

    finding = judge_clock(
        {rank: {"ahead_s": skew, "round_trip_s": 0.001} for rank, skew in skews.items()}, who
    )

    assert finding.verdict == "warn"
    assert finding.message == "the clock of n3 is 5.0 s behind that of n1"


def test_a_difference_that_the_round_trip_explains_is_none():
    answers = {0: {"ahead_s": 0.0, "round_trip_s": 0.0}, 1: {"ahead_s": 1.4, "round_trip_s": 2.0}}

    assert judge_clock(answers, cluster(2, 1)).verdict == "ok"


def disk(**changes: object) -> dict[str, object]:
    return {
        "folder": "/runs/a", "sees_token": True, "writable": True, "error": None,
        "free_bytes": 100 * GIB, "bytes_per_s": 0.5 * GIB, **changes,
    }  # fmt: skip


def test_a_disk_without_room_for_the_probe_fails_though_no_checkpoint_is_known():
    finding = judge_disk({0: disk(free_bytes=4096)}, cluster(1, 1), None)

    assert finding.verdict == "fail"
    assert "no run fits there" in finding.message


def test_a_disk_too_full_for_one_checkpoint_fails():
    finding = judge_disk({0: disk(), 1: disk(free_bytes=3 * GIB)}, cluster(2, 1), 10 * GIB)

    assert finding.verdict == "fail"
    assert "n2 sees 3.00 GiB free in /runs/a, and one checkpoint takes 10.00 GiB" in finding.message


def test_a_folder_that_is_not_shared_fails_and_names_both_hosts():
    finding = judge_disk({0: disk(), 1: disk(sees_token=False, writable=None)}, cluster(2, 1), None)

    assert finding.verdict == "fail"
    assert "n2 does not see what n1 wrote" in finding.message


def test_a_read_only_folder_fails_with_the_reason():
    finding = judge_disk({0: disk(writable=False, error="Read-only file system")}, cluster(1, 1), None)

    assert finding.verdict == "fail"
    assert "n1 cannot write to /runs/a: Read-only file system" in finding.message


def test_the_time_of_a_save_follows_from_all_nodes_together():
    finding = judge_disk({0: disk(), 1: disk()}, cluster(2, 1), 10 * GIB)

    assert finding.verdict == "ok"
    assert finding.measured["save_s"] == pytest.approx(10)


def memory(**changes: object) -> dict[str, object]:
    return {
        "shm_bytes": 8 * GIB, "shm_free_bytes": 8 * GIB, "limit_bytes": 64 * GIB, "available_bytes": 60 * GIB,
        "cores": [0, 1, 2, 3], "usable_cores": 4, "threads": 2, "on_gpu": True, **changes,
    }  # fmt: skip


def test_dockers_shared_memory_warns_where_there_are_gpus():
    small = {0: memory(shm_bytes=2**26, shm_free_bytes=2**26), 1: memory()}

    assert judge_shared_memory(small, cluster(1, 2)).verdict == "warn"
    assert "--shm-size" in judge_shared_memory(small, cluster(1, 2)).fix
    assert judge_shared_memory({0: memory(shm_free_bytes=2**26, on_gpu=False)}, cluster(1, 1)).verdict == "ok"


def test_a_node_with_too_little_memory_fails_by_the_share_of_its_ranks():
    answers = {rank: memory(available_bytes=20 * GIB if rank == 2 else 60 * GIB) for rank in range(4)}

    finding = judge_host_memory(answers, cluster(2, 2), 50 * GIB)

    assert finding.verdict == "fail"
    assert finding.message.startswith(
        "n2 has 20.00 GiB of host memory for 2 rank(s) that need at least 25.00 GiB"
    )


def test_more_threads_than_cores_warn_but_ranks_bound_apart_do_not():
    shared = {rank: memory(threads=4) for rank in range(2)}
    bound = {rank: memory(cores=[rank], usable_cores=1, threads=1) for rank in range(2)}

    assert "2 rank(s) on n1 run 8 threads on 4 core(s)" in judge_cpus(shared, cluster(1, 2)).message
    assert judge_cpus(bound, cluster(1, 2)).verdict == "ok"


def test_a_lock_is_stale_only_if_no_node_holds_it():
    lock = "/home/u/.cache/torch_extensions/py311_cpu/cpu_adam/lock"
    everywhere = {0: {"locks": {lock: 900.0}}, 1: {}, 2: {"locks": {lock: 900.0}}, 3: {}}

    found = judge_build_locks(everywhere, cluster(2, 2))
    held_on_n2 = judge_build_locks({**everywhere, 2: {"locks": {}}}, cluster(2, 2))

    assert found.verdict == "warn" and f"rm {lock}" in found.fix
    assert held_on_n2.verdict == "ok"


def slurm_says(job: Answer, left: Answer):
    return lambda command: job if command[0] == "scontrol" else left


def test_slurms_answer_gives_the_time_left():
    facts = ask_slurm(
        "12", slurm_says(Answer(code=0, out="JobId=12", err=""), Answer(code=0, out="1:02:03\n", err=""))
    )

    assert facts["left_s"] == 3723
    assert judge_slurm({0: facts}, cluster(1, 1)).verdict == "ok"
    assert judge_slurm({0: {**facts, "left_s": 120.0}}, cluster(1, 1)).verdict == "warn"
    assert judge_slurm({0: {}}, cluster(1, 1)).verdict == "n/a"


def test_scontrol_that_cannot_be_reached_warns_with_its_words():
    refused = Answer(code=1, out="", err="Unable to contact slurm controller")

    def not_there(_command):
        raise SubmitError("there is no scontrol on this machine")

    assert (
        "Unable to contact"
        in judge_slurm({0: ask_slurm("12", slurm_says(refused, refused))}, cluster(1, 1)).message
    )
    assert "there is no scontrol" in judge_slurm({0: ask_slurm("12", not_there)}, cluster(1, 1)).message


def matmul(flops_per_s: float, *, on_gpu: bool = True, device: str = "H100") -> dict[str, object]:
    return {"device": device, "flops_per_s": flops_per_s, "on_gpu": on_gpu}


def test_a_slow_gpu_fails_and_a_slow_core_warns():
    speeds = [700e12, 710e12, 705e12, 500e12]

    gpu = judge_matmul({rank: matmul(speed) for rank, speed in enumerate(speeds)}, cluster(2, 2))
    cpu = judge_matmul(
        {rank: matmul(speed, on_gpu=False) for rank, speed in enumerate(speeds)}, cluster(2, 2)
    )

    assert gpu.verdict == "fail" and gpu.nodes_at_fault == ("n2",)
    assert "rank 3 on n2 multiplies at 500 TFLOP/s, 71% of the median" in gpu.message
    assert cpu.verdict == "warn" and cpu.nodes_at_fault == ()


def test_devices_are_compared_with_their_own_kind():
    answers = {
        0: matmul(700e12),
        1: matmul(700e12),
        2: matmul(300e12, device="A100"),
        3: matmul(300e12, device="A100"),
    }

    finding = judge_matmul(answers, cluster(2, 2))

    assert finding.verdict == "warn"
    assert "2 kinds of devices: A100, H100" in finding.message


def test_a_wrong_sum_of_the_process_group_fails():
    answers = {rank: {"backend": "nccl", "seconds": 1.0, "sum": 4.0 if rank else 3.0} for rank in range(4)}

    finding = judge_group(answers, cluster(2, 2))

    assert finding.verdict == "fail"
    assert "rank 0 on n1 got 3 as the sum of 4 ones" in finding.message


def test_bus_bandwidth_counts_the_slowest_rank():
    answers = {rank: {"all_reduce": {"1000": 0.001 * (1 + rank)}} for rank in range(4)}

    finding = judge_collectives(answers, cluster(2, 2))

    assert finding.measured["all_reduce"]["1000"]["seconds"] == 0.004
    assert finding.measured["all_reduce"]["1000"]["bus_bytes_per_s"] == pytest.approx(1000 / 0.004 * 1.5)


def names(**changes: object) -> dict[str, object]:
    return {
        "hostname": "n1", "addresses": ["10.0.0.1"], "error": None, "lookup_s": 0.01, "master": "n1",
        "master_addresses": ["10.0.0.1"], "master_error": None, "interface": "eth0",
        "interfaces": ["eth0", "ib0", "lo"], "asked": {}, **changes,
    }  # fmt: skip


def test_a_name_that_leads_to_the_loopback_matters_only_with_several_nodes():
    local = {0: names(addresses=["127.0.1.1"]), 1: names()}

    assert judge_names(local, cluster(2, 1)).verdict == "warn"
    assert judge_names({0: local[0]}, cluster(1, 1)).verdict == "ok"


def test_a_master_that_does_not_resolve_and_an_unknown_interface_fail():
    finding = judge_names(
        {0: names(), 1: names(master_error="Name or service not known", asked={"GLOO_SOCKET_IFNAME": "ib9"})},
        cluster(2, 1),
    )

    assert finding.verdict == "fail"
    assert "n2 cannot resolve rank 0's host n1: Name or service not known" in finding.message
    assert "GLOO_SOCKET_IFNAME=ib9 names no interface of n2, which has eth0, ib0, lo" in finding.message


@pytest.mark.parametrize(
    ("asked", "by_prefix", "exists"),
    [
        ("eth0", False, True), ("eth", False, False), ("eth", True, True), ("=eth", True, False),
        ("=eth0", True, True), ("^docker", True, True), ("ib,eth", True, True), ("en", True, False),
    ],
)  # fmt: skip
def test_interfaces_are_asked_for_as_gloo_and_nccl_read_them(asked, by_prefix, exists):
    assert interface_exists(asked, ["eth0", "lo"], by_prefix=by_prefix) is exists


def test_a_slow_connection_warns():
    finding = judge_ports({0: {"connect_s": 0.001}, 1: {"connect_s": 3.1}}, cluster(2, 1))

    assert finding.verdict == "warn"
    assert "rank 1 on n2 needed 3.1 s" in finding.message


def test_the_route_with_the_longest_prefix_wins(tmp_path):
    table = tmp_path / "route"
    table.write_text(
        "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
        "eth0 00000000 0101A8C0 0003 0 0 0 00000000 0 0 0\n"
        "ib0 00000A0A 00000000 0001 0 0 0 0000FFFF 0 0 0\n"
    )

    assert route_interface("10.10.3.4", table) == "ib0"
    assert route_interface("192.0.2.7", table) == "eth0"
    assert route_interface("127.0.0.1", table) == "lo"
    assert route_interface("fe80::1", table) is None
    assert (
        all_lead_back(["127.0.1.1", "::1"])
        and not all_lead_back(["127.0.1.1", "10.0.0.1"])
        and not all_lead_back([])
    )


def test_nothing_is_excluded_when_most_nodes_are_at_fault():
    finding = Finding(verdict="fail", message="", nodes_at_fault=("n1", "n2", "n3"))
    result = RungResult(name="disk", seconds=0.0, finding=finding)

    assert exclude_option([result], ["n1", "n2", "n3", "n4"]) is None
    assert exclude_option([result], [f"n{number}" for number in range(1, 9)]) == "--exclude=n1,n2,n3"


def test_a_warning_passes_and_a_failure_does_not():
    def answer(verdict):
        finding = Finding(verdict=verdict, message="m")
        return report([RungResult(name="clock", seconds=0.1, finding=finding)], cluster(1, 1), None)["passed"]

    assert [answer(verdict) for verdict in ("ok", "warn", "n/a", "fail")] == [True, True, True, False]
