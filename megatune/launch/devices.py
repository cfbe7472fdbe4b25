"""What this machine has, without torch: GPUs, CPU cores and memory that this process may use."""

import csv
import math
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from megatune.launch import ranks

_NVIDIA_SMI_TIMEOUT_S = 20.0  # a broken driver makes it hang for ever
_UNLIMITED_BYTES = 1 << 60  # cgroup v1 writes a huge number for "no limit"


def count_gpus(driver_folder: Path = Path("/proc/driver/nvidia/gpus")) -> int:
    """How many NVIDIA GPUs this process can use: those of CUDA_VISIBLE_DEVICES that exist.

    Asks `nvidia-smi -L`, and the driver's folder where that is absent, fails or hangs. None with
    DS_ACCELERATOR=cpu: the user wants this machine to be one without GPUs.
    """
    if ranks.asks_for_cpu():
        return 0
    installed = _count_by_nvidia_smi()
    if installed is None:
        installed = len(list(driver_folder.iterdir())) if driver_folder.is_dir() else 0
    visible = ranks.visible_devices()
    if visible is None or installed == 0:
        return installed
    # An index beyond the last GPU ends CUDA's list; names (GPU-..., MIG-...) are taken as they are.
    usable = 0
    for entry in visible:
        if entry.isdigit() and int(entry) >= installed:
            break
        usable += 1
    return usable


def ranks_here(asked: int | Literal["auto"], tensor_parallel: int, *, num_gpus: int) -> int:
    """Ranks that a start makes on this machine: as many as asked for, of launch.nproc_per_node.

    With auto one a GPU, where there are `num_gpus`; without GPUs one a core, in whole tensor-parallel groups.

    >>> ranks_here("auto", 2, num_gpus=8), ranks_here(3, 1, num_gpus=8)
    (8, 3)
    >>> ranks_here("auto", 4096, num_gpus=0)  # more than cores: one group
    4096
    """
    if asked != "auto":
        return asked
    return num_gpus or max(1, count_cpus() // tensor_parallel) * tensor_parallel


def gpu_kind() -> tuple[str, int] | None:
    """The driver's name of this machine's GPUs and the bytes of one; None where they differ or nobody says.

    The smallest memory of equal names: MIG slices and broken boards have less.
    """
    rows = query_gpus(("name", "memory.total"), units=False)
    names, sizes = {row["name"] for row in rows}, [row["memory.total"] for row in rows]
    if len(names) != 1 or not all(size.isdigit() for size in sizes):
        return None
    return names.pop(), min(int(size) for size in sizes) * 2**20


def query_gpus(fields: Sequence[str], *, units: bool) -> list[dict[str, str]]:
    """What the driver says of each installed GPU, in its own words; none where nvidia-smi is absent, fails or hangs.

    A line with another number of values, such as a warning, is left out.
    """
    text = _nvidia_smi(
        f"--query-gpu={','.join(fields)}", f"--format=csv,noheader{'' if units else ',nounits'}"
    )
    rows = csv.reader((text or "").splitlines(), skipinitialspace=True)
    return [dict(zip(fields, map(str.strip, row), strict=True)) for row in rows if len(row) == len(fields)]


def gpu_driver_version(root: Path = Path("/")) -> str | None:
    """The version of NVIDIA's kernel driver, `535.104.05`, or None when it does not say."""
    match = re.search(r"^NVRM version:.*?\s(\d+\.[\d.]+)", _read(root / "proc/driver/nvidia/version") or "")
    return match.group(1) if match else None


def count_cpus(root: Path = Path("/")) -> int:
    """CPU cores that this process may use: its affinity, cut down by cgroup quotas. At least 1."""
    cores = len(os.sched_getaffinity(0))
    quotas = [_cpu_quota_v2(folder) for folder in _cgroup_folders(root, "")]
    quotas += [_cpu_quota_v1(folder) for folder in _cgroup_folders(root, "cpu")]
    return max(1, min([cores, *(math.floor(quota) for quota in quotas if quota is not None)]))


def host_memory_bytes(root: Path = Path("/")) -> int | None:
    """Bytes of host memory that this process may use: the machine's, cut down by cgroup limits.

    None when the kernel does not say.
    """
    limits = [_byte_limit(folder / "memory.max") for folder in _cgroup_folders(root, "")]
    limits += [_byte_limit(folder / "memory.limit_in_bytes") for folder in _cgroup_folders(root, "memory")]
    known = [limit for limit in [_memory_line(root, "MemTotal"), *limits] if limit is not None]
    return min(known) if known else None


def available_memory_bytes(root: Path = Path("/")) -> int | None:
    """Bytes of host memory that this process could still take: of the machine, and below its cgroup limits.

    Files that are only cached count as available. None when the kernel does not say.
    """
    machine = _memory_line(root, "MemAvailable")
    groups = [_left_v2(folder) for folder in _cgroup_folders(root, "")]
    groups += [_left_v1(folder) for folder in _cgroup_folders(root, "memory")]
    known = [left for left in [machine, *groups] if left is not None]
    return min(known) if known else None


def cpu_model(root: Path = Path("/")) -> str | None:
    """The processor's name, as `lscpu` shows it, or None."""
    match = re.search(r"^model name\s*:\s*(.+)$", _read(root / "proc/cpuinfo") or "", re.MULTILINE)
    return match.group(1).strip() if match else None


def cpu_flags(root: Path = Path("/")) -> str:
    """The processor's instruction sets; code compiled for one machine may not run on one that lacks them."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read(root / "proc/cpuinfo") or "", re.MULTILINE)
    return " ".join(sorted(match.group(1).split())) if match else ""


def _count_by_nvidia_smi() -> int | None:
    listed = _nvidia_smi("-L")  # not installed, or hanging: the driver's folder is asked next
    return None if listed is None else sum(line.startswith("GPU ") for line in listed.splitlines())


def _nvidia_smi(*arguments: str) -> str | None:
    """What it prints; None where it is not installed, fails, or hangs."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """This process's cgroup of `controller` ("" is cgroup v2) and all above it: each may set a limit."""
    mount = root / "sys/fs/cgroup"
    folders: list[Path] = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(","):
            continue
        base = mount / controllers if controller else mount
        # A container sees its own cgroup as the top, whatever path the kernel names here.
        inner = base / path.strip("/")
        folders += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(base)]
    return folders


def _cpu_quota_v2(folder: Path) -> float | None:
    quota, _, period = (_read(folder / "cpu.max") or "").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.strip().isdigit() else None


def _cpu_quota_v1(folder: Path) -> float | None:
    quota = (_read(folder / "cpu.cfs_quota_us") or "").strip()
    period = (_read(folder / "cpu.cfs_period_us") or "").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _byte_limit(file: Path) -> int | None:
    text = (_read(file) or "").strip()
    return int(text) if text.isdigit() and int(text) < _UNLIMITED_BYTES else None


def _left_v2(folder: Path) -> int | None:
    return _left(folder, "memory.max", "memory.current", "inactive_file")


def _left_v1(folder: Path) -> int | None:
    return _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _left(folder: Path, limit_file: str, usage_file: str, cached_key: str) -> int | None:
    limit, usage = _byte_limit(folder / limit_file), _byte_limit(folder / usage_file)
    if limit is None or usage is None:
        return None
    cached = re.search(rf"^{cached_key} (\d+)$", _read(folder / "memory.stat") or "", re.MULTILINE)
    return max(0, limit - usage + (int(cached.group(1)) if cached else 0))


def _memory_line(root: Path, name: str) -> int | None:
    match = re.search(rf"^{name}:\s+(\d+) kB$", _read(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None  # this kernel or container does not offer the file
