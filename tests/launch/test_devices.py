import os
from pathlib import Path

import pytest

from megatune.bench.record import gpus as gpus_of_record
from megatune.launch.devices import (
    available_memory_bytes,
    count_cpus,
    count_gpus,
    cpu_flags,
    gpu_driver_version,
    gpu_kind,
    host_memory_bytes,
    query_gpus,
    ranks_here,
)

GIB = 2**30
MIB = 2**20  # KiB are in the kernel's files, so this is a GiB there


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


LIST_TWO = "echo 'GPU 0: NVIDIA A100 (UUID: GPU-a)'; echo '  MIG 1g.10gb'; echo 'GPU 1: NVIDIA A100'"


def test_gpus_are_those_that_the_driver_lists(nvidia_smi):
    nvidia_smi(LIST_TWO)
    assert count_gpus() == 2


@pytest.mark.parametrize(("visible", "expected"), [("1", 1), ("", 0), ("0,1,2", 2), ("GPU-a", 1), ("7,0", 0)])
def test_visible_devices_limit_the_gpus_to_those_that_exist(nvidia_smi, monkeypatch, visible, expected):
    nvidia_smi(LIST_TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == expected


def test_gpus_that_the_user_keeps_deepspeed_off_count_for_nothing(nvidia_smi, monkeypatch):
    nvidia_smi(LIST_TWO)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert count_gpus() == 0


WARNS = """case $1 in
-L) echo 'GPU 0: NVIDIA H200 (UUID: GPU-a)';;
*power*) echo 'NVIDIA H200, 143771 MiB, 700.00 W, 570.1';;
*) echo 'NVIDIA H200, 143771';;
esac
echo 'WARNING: infoROM is corrupted at gpu 0000:01'"""


def test_a_warning_among_what_the_driver_says_is_no_gpu(nvidia_smi):
    nvidia_smi(WARNS)
    assert gpu_kind() == ("NVIDIA H200", 143771 * MIB)
    told = {
        "name": "NVIDIA H200",
        "memory.total": "143771 MiB",
        "power.limit": "700.00 W",
        "driver_version": "570.1",
    }
    assert query_gpus(tuple(told), units=True) == [told]
    assert gpus_of_record() == [told]


def test_what_nobody_says_of_gpus_is_not_made_up(nvidia_smi):
    nvidia_smi(f"test $1 = -L && {{ {LIST_TWO}; }}")
    assert gpu_kind() is None
    assert gpus_of_record() == [{"name": "n/a"}, {"name": "n/a"}]


@pytest.mark.parametrize(
    "kind", ["NVIDIA UNIX x86_64 Kernel Module", "NVIDIA UNIX Open Kernel Module for x86_64"]
)
def test_the_driver_says_its_version(tmp_path, kind):
    assert gpu_driver_version(tmp_path) is None
    text = f"NVRM version: {kind}  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: gcc 12.2.0\n"
    assert gpu_driver_version(write(tmp_path, {"proc/driver/nvidia/version": text})) == "535.104.05"


def test_visible_devices_of_a_machine_without_gpus_count_for_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert count_gpus(tmp_path / "none") == 0


def test_a_failing_nvidia_smi_falls_back_to_the_drivers_folder(nvidia_smi, tmp_path):
    nvidia_smi("exit 9")
    write(tmp_path, {"gpus/0000:01/information": "", "gpus/0000:02/information": ""})
    assert count_gpus(tmp_path / "gpus") == 2


def test_a_hanging_nvidia_smi_does_not_hang_the_start(nvidia_smi, monkeypatch, tmp_path):
    monkeypatch.setattr("megatune.launch.devices._NVIDIA_SMI_TIMEOUT_S", 0.2)
    nvidia_smi("exec sleep 30")
    assert count_gpus(tmp_path / "none") == 0


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("asked", "tensor_parallel", "num_gpus", "expected"),
    [
        ("auto", 1, 0, 8),
        ("auto", 3, 0, 6),
        ("auto", 16, 0, 16),
        ("auto", 3, 4, 4),
        (5, 3, 0, 5),
        (2, 1, 4, 2),
    ],
)
def test_ranks_are_those_asked_for_or_one_a_gpu_or_whole_groups_of_cores(
    asked, tensor_parallel, num_gpus, expected
):
    assert ranks_here(asked, tensor_parallel, num_gpus=num_gpus) == expected


@pytest.mark.usefixtures("eight_cores")
def test_a_cgroup_v2_quota_of_any_level_limits_the_cores(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slurm/job_7\n",
            "sys/fs/cgroup/slurm/cpu.max": "350000 100000\n",
            "sys/fs/cgroup/slurm/job_7/cpu.max": "max 100000\n",
        },
    )
    assert count_cpus(root) == 3


@pytest.mark.usefixtures("eight_cores")
def test_a_cgroup_v1_quota_limits_the_cores_and_never_below_one(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/docker/ab\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert count_cpus(root) == 1


@pytest.mark.usefixtures("eight_cores")
def test_without_a_quota_the_affinity_counts(tmp_path):
    assert count_cpus(tmp_path) == 8


def test_host_memory_is_the_smallest_of_machine_and_cgroup_limits(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/meminfo": f"MemTotal:       {64 * GIB // 1024} kB\n",
            "proc/self/cgroup": "4:memory:/job\n0::/\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{16 * GIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert host_memory_bytes(root) == 16 * GIB
    (root / "proc/self/cgroup").unlink()
    assert host_memory_bytes(root) == 64 * GIB


def test_available_memory_is_what_the_tightest_limit_leaves_with_cached_files_counted_as_free(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/meminfo": f"MemTotal: {64 * MIB} kB\nMemAvailable: {40 * MIB} kB\n",
            "proc/self/cgroup": "0::/job/step\n",
            "sys/fs/cgroup/job/memory.max": str(16 * GIB),
            "sys/fs/cgroup/job/memory.current": str(13 * GIB),
            "sys/fs/cgroup/job/memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
            "sys/fs/cgroup/job/step/memory.max": "max",
            "sys/fs/cgroup/job/step/memory.current": str(13 * GIB),
        },
    )
    assert available_memory_bytes(root) == 5 * GIB
    (root / "proc/self/cgroup").unlink()
    assert available_memory_bytes(root) == 40 * GIB
    (root / "proc/meminfo").unlink()
    assert available_memory_bytes(root) is None


def test_available_memory_below_a_cgroup_v1_limit(tmp_path):
    folder = "sys/fs/cgroup/memory/job"
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/job\n",
            f"{folder}/memory.limit_in_bytes": str(8 * GIB),
            f"{folder}/memory.usage_in_bytes": str(9 * GIB),
            f"{folder}/memory.stat": "total_inactive_file 0\n",
        },
    )
    assert available_memory_bytes(root) == 0


def test_unknown_host_memory_is_none(tmp_path):
    assert host_memory_bytes(tmp_path) is None


def test_this_machine_answers():
    assert 1 <= count_cpus() <= (os.cpu_count() or 1)
    assert (host_memory_bytes() or 0) > GIB // 2
    assert cpu_flags()
