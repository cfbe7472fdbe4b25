"""The one file that reads environment variables: which rank this process is, and a few settings.

A launched rank carries RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and
MASTER_PORT, set by torchrun or by `megatune train` itself (`launch/local.py`).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatune.errors import LaunchError

# DeepSpeed quietly trains each process alone (world size 1) when LOCAL_RANK is missing: it then
# asks MPI and overwrites the other variables. So all of them must be there, or none.
_REQUIRED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOCAL_WORLD_NAMES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")  # torchrun's name, DeepSpeed's name
_FOREIGN_WORLDS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec"}
_LOG_VARIABLE = "MEGATUNE_RANK_LOG"
_LAUNCHER_VARIABLE = "MEGATUNE_LAUNCHER"
_SURROUNDINGS = (
    "SLURM_JOB_ID",
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_NODELIST",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURMD_NODENAME",
    "GLOO_SOCKET_IFNAME",
    "NCCL_SOCKET_IFNAME",
)


@dataclass(frozen=True, kw_only=True)
class RankInfo:
    """Which rank this process is. Ranks count from 0; `local_*` are those of this machine."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    master_addr: str
    master_port: int
    launcher: str
    """`local`, `torchrun`, or `environment` when somebody else set the variables."""


def discover_rank(environ: Mapping[str, str] = os.environ) -> RankInfo | None:
    """The rank that the environment gives this process, or None outside a launched job.

    Raises LaunchError, naming every missing or impossible variable, when the environment is set
    only in part, or when srun or mpirun started several processes without telling them their rank.
    """
    present = [name for name in _REQUIRED if environ.get(name)]
    if not present:
        _refuse_unranked_copies(environ)
        return None
    _refuse_half_set(environ, present)
    return _read_rank(environ)


def rank_environment(
    rank: RankInfo, *, threads: int, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The whole environment of a rank that this process starts.

    `threads` becomes OMP_NUM_THREADS unless the user has set it; `extra` wins over everything.
    """
    return {
        # Kept when the user has set them.
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",  # the last words of a killed rank must be in its log
        "PYTHONFAULTHANDLER": "1",  # a fault in native code prints the Python stack
        **os.environ,
        "RANK": str(rank.rank),
        "LOCAL_RANK": str(rank.local_rank),
        "WORLD_SIZE": str(rank.world_size),
        "LOCAL_WORLD_SIZE": str(rank.local_world_size),
        "MASTER_ADDR": rank.master_addr,
        "MASTER_PORT": str(rank.master_port),
        _LAUNCHER_VARIABLE: rank.launcher,
        **(extra or {}),
    }


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `extra` on top, for a child that is no rank."""
    return {**os.environ, **extra}


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where megatune keeps what it can make again: MEGATUNE_CACHE, else XDG_CACHE_HOME, else ~/.cache."""
    if environ.get("MEGATUNE_CACHE"):
        return Path(environ["MEGATUNE_CACHE"]).expanduser().absolute()
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser().absolute() if base else Path.home() / ".cache") / "megatune"


def extension_folder_override(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of TORCH_EXTENSIONS_DIR, where the user wants compiled ops, or None."""
    value = environ.get("TORCH_EXTENSIONS_DIR")
    return Path(value).expanduser().absolute() if value else None


def surroundings(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the scheduler and the user say about this node and its network; unset variables are left out."""
    return {name: environ[name] for name in _SURROUNDINGS if environ.get(name)}


def agent_store_prefix(environ: Mapping[str, str] = os.environ) -> str | None:
    """A name for this start when torchrun's agent holds the store on MASTER_PORT; None when rank 0 must open it.

    The agent's store outlives the ranks, so keys of an earlier start would be taken for this one's.
    """
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return f"{environ.get('TORCHELASTIC_RUN_ID', '')}/{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def use_extension_folder(folder: Path) -> None:
    """Make torch and DeepSpeed build and find ops of this process in `folder`."""
    os.environ.update(extension_environment(folder))


def extension_environment(folder: Path | None) -> dict[str, str]:
    """What a rank needs in its environment to find the ops that were built in `folder`."""
    return {} if folder is None else {"TORCH_EXTENSIONS_DIR": str(folder)}


def asks_for_cpu(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether DS_ACCELERATOR, DeepSpeed's own variable, keeps this process off the GPUs."""
    return environ.get("DS_ACCELERATOR") == "cpu"


def use_cpu_when_alone(num_gpus: int) -> None:
    """Tell DeepSpeed that there is no GPU to look for; it would warn about each start otherwise."""
    if num_gpus == 0:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def visible_devices(environ: Mapping[str, str] = os.environ) -> list[str] | None:
    """The entries of CUDA_VISIBLE_DEVICES that CUDA would use, or None when it is not set.

    CUDA stops at the first entry that is empty or negative.
    """
    value = environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    entries: list[str] = []
    for entry in (part.strip() for part in value.split(",")):
        if not entry or entry.startswith("-"):
            break
        entries.append(entry)
    return entries


def rank_log(environ: Mapping[str, str] = os.environ) -> Path | None:
    """This rank's log file when its standard output is a terminal; None when output is logged anyway."""
    value = environ.get(_LOG_VARIABLE)
    return Path(value) if value else None


def rank_log_environment(log: Path) -> dict[str, str]:
    """What `rank_log` reads."""
    return {_LOG_VARIABLE: str(log)}


def _refuse_unranked_copies(environ: Mapping[str, str]) -> None:
    for name, starter in _FOREIGN_WORLDS.items():
        size = environ.get(name, "")
        if size.isdigit() and int(size) > 1:
            raise LaunchError(
                f"{starter} started {size} processes ({name}={size}), but none of {', '.join(_REQUIRED)} "
                "is set, so they cannot find each other and each would train alone. Start one torchrun "
                f"per node with {starter} (`{starter} ... torchrun ... -m megatune train RUN.yaml`), "
                "or export these variables for each process."
            )


def _refuse_half_set(environ: Mapping[str, str], present: list[str]) -> None:
    missing = [name for name in _REQUIRED if name not in present]
    if not any(environ.get(name) for name in _LOCAL_WORLD_NAMES):
        missing.append(_LOCAL_WORLD_NAMES[0])
    if missing:
        raise LaunchError(
            f"the rank environment is set only in part: {', '.join(present)} set, {', '.join(missing)} "
            "missing. A job that goes on so trains every process alone. Start with torchrun or plain "
            f"`megatune train`, which set all of them; or export {', '.join(missing)}; or, for a run on this "
            f"machine alone, unset {' '.join(present)}."
        )


def _read_rank(environ: Mapping[str, str]) -> RankInfo:
    problems: list[str] = []
    local_world_name = next(name for name in _LOCAL_WORLD_NAMES if environ.get(name))
    rank = _integer(environ, "RANK", problems)
    local_rank = _integer(environ, "LOCAL_RANK", problems)
    world_size = _integer(environ, "WORLD_SIZE", problems)
    local_world_size = _integer(environ, local_world_name, problems)
    master_port = _integer(environ, "MASTER_PORT", problems)
    if not problems:
        if rank >= world_size:
            problems.append(f"RANK={rank} must be below WORLD_SIZE={world_size}")
        if local_rank >= local_world_size:
            problems.append(f"LOCAL_RANK={local_rank} must be below {local_world_name}={local_world_size}")
        if local_world_size > world_size:
            problems.append(f"{local_world_name}={local_world_size} must not exceed WORLD_SIZE={world_size}")
        if not 0 < master_port < 65536:
            problems.append(f"MASTER_PORT={master_port} must be from 1 to 65535")
    if problems:
        raise LaunchError(f"the rank environment is impossible: {'; '.join(problems)}. Check the launcher.")
    return RankInfo(
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        local_world_size=local_world_size,
        master_addr=environ["MASTER_ADDR"],
        master_port=master_port,
        launcher=_launcher_name(environ),
    )


def _integer(environ: Mapping[str, str], name: str, problems: list[str]) -> int:
    value = environ[name]
    if value.isascii() and value.isdigit():
        return int(value)
    problems.append(f"{name}={value!r} must be a whole number of 0 or more")
    return -1


def _launcher_name(environ: Mapping[str, str]) -> str:
    if "TORCHELASTIC_RUN_ID" in environ:
        return "torchrun"
    return environ.get(_LAUNCHER_VARIABLE, "environment")
