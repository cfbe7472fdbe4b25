"""Which rank a task of srun is, from the variables that Slurm gives it; and the job it belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass

from megatune.errors import LaunchError
from megatune.launch.nodelist import expand_nodelist, expand_task_counts
from megatune.launch.ports import PORTS
from megatune.launch.rank_info import RankInfo
from megatune.launch.variables import needed_number, whole_number

# Slurm numbers the steps that are none of srun's downwards from here: batch script, extern, interactive.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """The allocation that this process runs in."""

    job_id: str | None
    """As squeue takes it: `1234`, or `1234_5` for a task of an array."""
    restart_count: int
    """How often Slurm has queued the job again; 0 in its first run."""
    end_time_s: float | None
    """When the allocation ends, in seconds since 1970, as it was known at its start; older Slurm does not say."""


def slurm_job(environ: Mapping[str, str]) -> SlurmJob | None:
    """The allocation of this process, or None outside one. Raises LaunchError for values that are none.

    SLURM_JOB_END_TIME without SLURM_JOB_ID counts too: a wrapper may have cleared most variables.
    """
    number, end_time = environ.get("SLURM_JOB_ID"), environ.get("SLURM_JOB_END_TIME")
    if not number and not end_time:
        return None
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    problems: list[str] = []
    # Slurm does not set the number of restarts in the first run.
    restarts = needed_number({"SLURM_RESTART_COUNT": "0", **environ}, "SLURM_RESTART_COUNT", problems)
    end_time_s = needed_number(environ, "SLURM_JOB_END_TIME", problems) if end_time else None
    _raise(problems)
    return SlurmJob(
        job_id=f"{array}_{task}" if array and task else number or None,
        restart_count=restarts,
        end_time_s=end_time_s,
    )


def step_size(environ: Mapping[str, str]) -> int | None:
    """Tasks of the step of srun that this process belongs to; None outside one, as in a batch script."""
    step, size = (whole_number(environ, name, []) for name in ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"))
    return size if step is None or step < _FIRST_SPECIAL_STEP else None


def slurm_rank(environ: Mapping[str, str], *, whole_job: bool) -> RankInfo:
    """This task of srun as a rank: one task is one rank.

    MASTER_ADDR and MASTER_PORT are taken where they are set. Otherwise the ranks meet on the step's
    first host, at a port that follows from the numbers of job and step. `whole_job`: the step must be
    on all nodes of the job. Raises LaunchError naming everything that Slurm's variables contradict.
    """
    problems: list[str] = []
    rank, local_rank, size, node = (
        needed_number(environ, name, problems)
        for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_NODEID")
    )
    hosts = _hosts(environ, problems)
    counts = _task_counts(environ, problems)
    _raise(problems)
    problems += _contradictions(environ, rank, local_rank, size, node, hosts, counts)
    if whole_job:
        problems += _missing_nodes(environ, len(hosts))
    _raise(problems)
    return RankInfo(
        rank=rank,
        local_rank=local_rank,
        world_size=size,
        local_world_size=counts[node],
        master_addr=environ.get("MASTER_ADDR") or hosts[0],
        master_port=_port(environ),
        launcher="slurm",
        num_nodes=len(hosts),
    )


def _hosts(environ: Mapping[str, str], problems: list[str]) -> list[str]:
    text = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    if text:
        return expand_nodelist(text)
    problems.append("neither SLURM_STEP_NODELIST nor SLURM_JOB_NODELIST is set")
    return []


def _task_counts(environ: Mapping[str, str], problems: list[str]) -> list[int]:
    text = environ.get("SLURM_STEP_TASKS_PER_NODE")
    if text:
        return expand_task_counts(text)
    problems.append("SLURM_STEP_TASKS_PER_NODE is not set")
    return []


def _contradictions(
    environ: Mapping[str, str],
    rank: int,
    local_rank: int,
    size: int,
    node: int,
    hosts: list[str],
    counts: list[int],
) -> list[str]:
    found = []
    if "SLURM_HET_SIZE" in environ:
        found.append("SLURM_HET_SIZE is set, and ranks cannot be spread over a heterogeneous job")
    for name in ("SLURM_NTASKS", "SLURM_NPROCS", "WORLD_SIZE"):
        if environ.get(name, str(size)) != str(size):
            found.append(f"{name}={environ[name]}, but SLURM_STEP_NUM_TASKS={size}")
    if rank >= size:
        found.append(f"SLURM_PROCID={rank} must be below SLURM_STEP_NUM_TASKS={size}")
    if sum(counts) != size:
        found.append(f"SLURM_STEP_TASKS_PER_NODE counts {sum(counts)} tasks, SLURM_STEP_NUM_TASKS {size}")
    if len(counts) != len(hosts):
        found.append(f"tasks are counted for {len(counts)} node(s), and the list of nodes has {len(hosts)}")
    if node >= len(counts):
        found.append(f"SLURM_NODEID={node} must be below {len(counts)}, the number of nodes")
    elif local_rank >= counts[node]:
        found.append(f"SLURM_LOCALID={local_rank} must be below {counts[node]}, the tasks of this node")
    if rank == 0 and node != 0 and not environ.get("MASTER_ADDR"):
        found.append(
            f"task 0 is on node {node} of the step, and the others look for it on the first; export MASTER_ADDR"
        )
    return found


def _missing_nodes(environ: Mapping[str, str], num_nodes: int) -> list[str]:
    granted = environ.get("SLURM_JOB_NUM_NODES", str(num_nodes))
    if granted == str(num_nodes):
        return []
    return [
        f"the step runs on {num_nodes} node(s), but Slurm granted the job {granted} (SLURM_JOB_NUM_NODES)"
    ]


def _port(environ: Mapping[str, str]) -> int:
    problems: list[str] = []
    if environ.get("MASTER_PORT"):
        port = needed_number(environ, "MASTER_PORT", problems)
        if not problems and not 0 < port < 65536:
            problems.append(f"MASTER_PORT={port} must be from 1 to 65535")
        _raise(problems)
        return port
    job, step = (needed_number(environ, name, problems) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    _raise(problems)
    return PORTS[(job + step) % len(PORTS)]


def _raise(problems: list[str]) -> None:
    if problems:
        raise LaunchError(
            f"Slurm's variables do not fit together: {'; '.join(problems)}. Start the ranks with one "
            "`srun ... megatune train RUN.yaml`, and export none of these variables by hand."
        )
