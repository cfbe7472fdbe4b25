"""Host memory, /dev/shm and CPU cores of each node against what the ranks on it will use."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from megatune.doctor.place import Place
from megatune.doctor.verdict import Answers, Finding, Group, Json, Problem, conclude, not_available
from megatune.launch.devices import available_memory_bytes, count_cpus, host_memory_bytes
from megatune.units import format_bytes

_SHM = Path("/dev/shm")
# NCCL's guide asks containers for 1 GiB (docs.nvidia.com/deeplearning/nccl/user-guide, Troubleshooting);
# Docker's default of 64 MiB ends ranks with a bus error.
_SHM_FOR_GPUS_BYTES = 2**30
_SHM_FOR_CPUS_BYTES = 2**26


def measure_memory(place: Place) -> Json:
    """Free bytes of /dev/shm, host memory that this process may use, cores and threads of this rank."""
    shm = shutil.disk_usage(_SHM) if _SHM.is_dir() else None
    return {
        "shm_bytes": shm.total if shm else None,
        "shm_free_bytes": shm.free if shm else None,
        "limit_bytes": host_memory_bytes(),
        "available_bytes": available_memory_bytes(),
        "cores": sorted(os.sched_getaffinity(0)),
        "usable_cores": count_cpus(),
        "threads": torch.get_num_threads(),
        "on_gpu": place.device.type == "cuda",
    }


def judge_shared_memory(answers: Answers, group: Group) -> Finding:
    """NCCL moves data between the GPUs of a node through /dev/shm."""
    by_node = group.of_first_ranks(answers)
    problems = []
    for node, facts in by_node.items():
        needed = _SHM_FOR_GPUS_BYTES if facts["on_gpu"] else _SHM_FOR_CPUS_BYTES
        free = facts["shm_free_bytes"]
        if free is None or free < needed:
            problems.append(
                Problem(
                    verdict="warn",
                    text=f"/dev/shm of {node} has {format_bytes(free)} free of "
                    f"{format_bytes(facts['shm_bytes'])}; {format_bytes(needed)} are wanted",
                    fix="Give the container more (`--shm-size=1g`), or remove what others left in /dev/shm.",
                )
            )
    least = min((facts["shm_free_bytes"] or 0 for facts in by_node.values()), default=None)
    return conclude(
        problems,
        good=f"at least {format_bytes(least)} free in /dev/shm",
        measured={"least_free_bytes": least},
        by_node={
            node: {key: facts[key] for key in ("shm_bytes", "shm_free_bytes")}
            for node, facts in by_node.items()
        },
    )


def judge_host_memory(answers: Answers, group: Group, host_bytes: int | None) -> Finding:
    """Memory that is free now and allowed, on each node, against the least that the run needs there."""
    by_node: dict[str, dict[str, int | None]] = {}
    num_ranks = max(1, group.world_size)
    problems = []
    for node, facts in group.of_first_ranks(answers).items():
        usable = _least([facts["limit_bytes"], facts["available_bytes"]])
        here = group.num_ranks_on(node)
        needed = None if host_bytes is None else host_bytes * here // num_ranks
        by_node[node] = {"usable_bytes": usable, "needed_bytes": needed, "ranks": here}
        if usable is not None and needed is not None and usable < needed:
            problems.append(
                Problem(
                    verdict="fail",
                    text=f"{node} has {format_bytes(usable)} of host memory for {here} rank(s) that need at least "
                    f"{format_bytes(needed)}",
                    fix="Ask for more memory (slurm.mem), more nodes, or offload less.",
                )
            )
    least = _least([entry["usable_bytes"] for entry in by_node.values()])
    need = max((entry["needed_bytes"] or 0 for entry in by_node.values()), default=None)
    if least is None:
        return not_available("the kernel does not say how much memory there is")
    return conclude(
        problems,
        good=f"at least {format_bytes(least)} usable on a node; what the run needs: "
        + (f"{format_bytes(need)} or more" if need else "n/a"),
        measured={"least_usable_bytes": least, "most_needed_bytes": need},
        by_node=by_node,
    )


def judge_cpus(answers: Answers, group: Group) -> Finding:
    """The threads of all ranks of a node together against the cores they may run on."""
    problems, by_node = [], {}
    for node in group.node_names():
        facts = [answers[rank] for rank in sorted(answers) if group.nodes[rank] == node]
        if not facts:
            continue
        threads = sum(entry["threads"] for entry in facts)
        cores = shared_cores(facts)
        by_node[node] = {"ranks": len(facts), "threads": threads, "cores": cores}
        if threads > cores:
            problems.append(
                Problem(
                    verdict="warn",
                    text=f"{len(facts)} rank(s) on {node} run {threads} threads on {cores} core(s)",
                    fix="Ask for more cores a rank (slurm.cpus_per_task), or set OMP_NUM_THREADS to cores / ranks.",
                )
            )
    return conclude(problems, good="every thread has a core", by_node=by_node)


def shared_cores(facts: Iterable[Json]) -> int:
    """Cores that the ranks of a node have together: ranks bound apart each bring their own."""
    facts = list(facts)
    union = len({core for entry in facts for core in entry["cores"]})
    own = sum(entry["usable_cores"] for entry in facts)
    is_shared = all(entry["cores"] == facts[0]["cores"] for entry in facts)
    return int(facts[0]["usable_cores"]) if is_shared else min(union, own)


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)
