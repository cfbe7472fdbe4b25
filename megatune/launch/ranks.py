"""The one file that reads environment variables: which rank this process is, and a few settings.

A rank is told by RANK and its sisters (torchrun, `megatune train` itself), by the SLURM_* variables of
srun, or by those of mpirun. Whoever tells it, `export_rank` sets what torch and DeepSpeed read.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from megatune.errors import LaunchError
from megatune.launch.flight_recorder import recorder_environment
from megatune.launch.mpi import Meet, meet
from megatune.launch.mpi_ranks import MpiProcess, mpi_process
from megatune.launch.rank_info import RankInfo as RankInfo  # whoever calls discover_rank names it
from megatune.launch.slurm_ranks import SlurmJob, slurm_job, slurm_rank, step_size
from megatune.launch.start_names import REQUEST_VARIABLE, StartNames, start_names
from megatune.launch.torch_ranks import RANK_NAMES, read_rank, refuse_half_set

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


def discover_rank(
    environ: Mapping[str, str] = os.environ, *, launcher: str = "auto", meet: Meet = meet
) -> RankInfo | None:
    """The rank that the environment gives this process, or None outside a launched job.

    `launcher`: the run file's, which decides where there is a choice: a single task of srun is a rank
    for `slurm` or under the script of `megatune submit`, and otherwise a shell that starts local ranks;
    tasks of `srun --mpi=...` are asked through MPI for `mpi`. `meet` asks MPI, where the variables do
    not hold the address. Raises LaunchError, naming everything that is missing or impossible.
    """
    if environ.get("RANK"):
        return read_rank(environ, launcher=_launcher_name(environ))
    process = mpi_process(environ)
    if process is not None or (launcher == "mpi" and step_size(environ)):
        return _mpi_rank(environ, process, meet)
    if _is_slurm_rank(environ, launcher):
        return slurm_rank(environ, whole_job=in_submitted_job(environ))
    # In an allocation a script may have exported where its ranks are to meet, and this is none of them.
    if any(environ.get(name) for name in RANK_NAMES) or "SLURM_JOB_ID" not in environ:
        refuse_half_set(environ)
    return None


def export_rank(rank: RankInfo) -> None:
    """Set the variables of a rank in this process: torch's env:// start and DeepSpeed read them."""
    os.environ.update(_rank_variables(rank))


def use_device_index(index: int) -> None:
    """Make DeepSpeed, which takes LOCAL_RANK for the number of the GPU, use the one at `index`.

    They differ where each rank sees only its own GPU, as with `srun --gpus-per-task=1`.
    """
    os.environ["LOCAL_RANK"] = str(index)
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)  # DeepSpeed refuses one that differs


def in_submitted_job(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the script of `megatune submit` started this process; asked before `export_rank`."""
    return environ.get(_LAUNCHER_VARIABLE) == "slurm"


def own_slurm_job(environ: Mapping[str, str] = os.environ) -> SlurmJob | None:
    """The Slurm allocation that this process runs in, or None."""
    return slurm_job(environ)


def own_start_names(environ: Mapping[str, str] = os.environ) -> StartNames:
    """By which names this start is known: see `start_names.py`."""
    return start_names(environ)


def one_request() -> dict[str, str]:
    """What makes all ranks that are started with it, now or after a failure, starts of one request."""
    return {REQUEST_VARIABLE: uuid4().hex}


def in_allocation_shell(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process may start steps on all nodes: in a batch script or the shell of salloc, no task of srun."""
    return bool(environ.get("SLURM_JOB_ID")) and step_size(environ) is None


def other_nodes(environ: Mapping[str, str] = os.environ) -> int:
    """Nodes of the job beside this one, where this process is its batch script's or its shell's; else 0."""
    granted = environ.get("SLURM_JOB_NUM_NODES", "")
    return int(granted) - 1 if in_allocation_shell(environ) and granted.isdigit() and int(granted) else 0


def log_title(environ: Mapping[str, str] = os.environ) -> str | None:
    """`rank 3 of 8` for the log of a task of srun that the script of `megatune submit` started, or None."""
    if not in_submitted_job(environ) or step_size(environ) is None:
        return None
    return f"rank {environ['SLURM_PROCID']} of {environ['SLURM_STEP_NUM_TASKS']}"


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
        **_rank_variables(rank),
        **(extra or {}),
    }


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `extra` on top, for a child that is no rank."""
    return {**os.environ, **extra}


def replace_environment(environment: Mapping[str, str]) -> None:
    """Make `environment` that of this process: for a fork that takes the place of a new interpreter."""
    os.environ.clear()
    os.environ.update(environment)


def own_threads(environ: Mapping[str, str] = os.environ) -> int | None:
    """OMP_NUM_THREADS, which its library reads once, when it is loaded; None when it is no number."""
    value = environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else None


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


def use_mpi_library(library: str) -> None:
    """Have mpi4py load the library of that file name, this environment's own first, unless the user chose one.

    It takes the first one it finds, which need not be of the MPI whose mpirun started this process.
    """
    installed = Path(sys.prefix) / "lib" / library
    os.environ.setdefault("MPI4PY_LIBMPI", f"{installed}:{library}")


def use_extension_folder(folder: Path) -> None:
    """Make torch and DeepSpeed build and find ops of this process in `folder`."""
    os.environ.update(extension_environment(folder))


def extension_environment(folder: Path | None) -> dict[str, str]:
    """What a process needs in its environment to build ops in `folder`, or to find those that were; {} without one.

    torch asks PATH for ninja to load an op, too. It is installed beside this interpreter, whose folder is not there
    where the environment was not activated; last, so that the compilers stay those of the user.
    """
    if folder is None:
        return {}
    path, own = os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)
    found = path if own in path.split(os.pathsep) else f"{path}{os.pathsep}{own}"
    return {"TORCH_EXTENSIONS_DIR": str(folder), "PATH": found}


def record_collectives(folder: Path) -> None:
    """Have torch keep what this process asks NCCL for, to be written into `folder`; the user's settings win."""
    for name, value in recorder_environment(folder).items():
        os.environ.setdefault(name, value)


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


def _rank_variables(rank: RankInfo) -> dict[str, str]:
    return {
        "RANK": str(rank.rank),
        "LOCAL_RANK": str(rank.local_rank),
        "WORLD_SIZE": str(rank.world_size),
        "LOCAL_WORLD_SIZE": str(rank.local_world_size),
        "MASTER_ADDR": rank.master_addr,
        "MASTER_PORT": str(rank.master_port),
        _LAUNCHER_VARIABLE: rank.launcher,
    }


def _is_slurm_rank(environ: Mapping[str, str], launcher: str) -> bool:
    size = step_size(environ)
    if size is None:
        return False
    return size > 1 or launcher == "slurm" or in_submitted_job(environ)


def _mpi_rank(environ: Mapping[str, str], process: MpiProcess | None, meet: Meet) -> RankInfo:
    address, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT", "")
    if process and process.local_rank is not None and process.local_size and address and port.isdigit():
        return RankInfo(
            rank=process.rank,
            local_rank=process.local_rank,
            world_size=process.size,
            local_world_size=process.local_size,
            master_addr=address,
            master_port=int(port),
            launcher="mpi",
        )
    if process and process.library and environ is os.environ:
        use_mpi_library(process.library)
    met = meet()
    if process and (met.rank, met.size) != (process.rank, process.size):
        raise LaunchError(
            f"mpirun started this process as rank {process.rank} of {process.size}, but the MPI library of "
            f"mpi4py says rank {met.rank} of {met.size}: they belong to different MPIs. Use the mpirun of that "
            "library, load the module of the other, or export MASTER_ADDR and MASTER_PORT to all ranks."
        )
    return RankInfo(
        rank=met.rank,
        local_rank=met.local_rank,
        world_size=met.size,
        local_world_size=met.local_size,
        master_addr=address or met.address,
        master_port=int(port) if port.isdigit() else met.port,
        launcher="mpi",
        num_nodes=met.num_nodes,
    )


def _launcher_name(environ: Mapping[str, str]) -> str:
    if "TORCHELASTIC_RUN_ID" in environ:
        return "torchrun"
    return environ.get(_LAUNCHER_VARIABLE, "environment")
