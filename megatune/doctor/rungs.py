"""The rungs of the ladder, in their order: cheap and local first, the whole network last."""

from collections.abc import Callable
from dataclasses import dataclass

from megatune.doctor import (
    clock,
    disk,
    gpus,
    group,
    leftovers,
    matmul,
    memory,
    network,
    offload_disk,
    pairs,
    versions,
)
from megatune.doctor.place import Place, Setting
from megatune.doctor.verdict import Answers, Finding, Group, Json

RENDEZVOUS = "rendezvous"
VERSIONS = "versions"


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A check: every rank measures, rank 0 judges the answers."""

    name: str
    measure: Callable[[Place], Json]
    judge: Callable[[Answers, Group], Finding]
    limit_s: float = 10.0
    needs_all: bool = False
    """Whether its measurement waits for every rank: skipped when one is missing."""


def ladder(setting: Setting) -> list[Rung]:
    """All rungs after the rendezvous."""
    return [
        Rung(
            name=VERSIONS,
            measure=lambda place: versions.measure_versions(asks_git=place.rank.local_rank == 0),
            judge=versions.judge_versions,
            limit_s=20,
        ),
        Rung(name="names", measure=network.measure_names, judge=network.judge_names, limit_s=15),
        Rung(name="ports", measure=network.measure_ports, judge=network.judge_ports),
        Rung(name="clock", measure=clock.measure_clock, judge=clock.judge_clock, limit_s=15),
        Rung(
            name="disk",
            measure=disk.measure_disk,
            judge=lambda answers, who: disk.judge_disk(answers, who, setting.checkpoint_bytes),
            limit_s=30,
        ),
        *_offload_disk(setting),
        Rung(name="shared_memory", measure=memory.measure_memory, judge=memory.judge_shared_memory),
        Rung(
            name="host_memory",
            measure=memory.measure_memory,
            judge=lambda answers, who: memory.judge_host_memory(answers, who, setting.host_bytes),
        ),
        Rung(name="cpus", measure=memory.measure_memory, judge=memory.judge_cpus),
        Rung(name="build_locks", measure=leftovers.measure_build_locks, judge=leftovers.judge_build_locks),
        Rung(name="slurm", measure=leftovers.measure_slurm, judge=leftovers.judge_slurm, limit_s=12),
        Rung(name="gpus", measure=gpus.measure_gpus, judge=gpus.judge_gpus, limit_s=45),
        Rung(name="matmul", measure=matmul.measure_matmul, judge=matmul.judge_matmul, limit_s=20),
        Rung(
            name="process_group",
            measure=group.measure_group,
            judge=group.judge_group,
            limit_s=30,
            needs_all=True,
        ),
        Rung(
            name="collectives",
            measure=group.measure_collectives,
            judge=group.judge_collectives,
            limit_s=25,
            needs_all=True,
        ),
        Rung(name="pairs", measure=pairs.measure_pairs, judge=pairs.judge_pairs, limit_s=25, needs_all=True),
    ]


def _offload_disk(setting: Setting) -> list[Rung]:
    """For runs whose optimizer is to live on a local disk; its states are what a checkpoint holds."""
    if setting.offload_folder is None:
        return []
    return [
        Rung(
            name="offload_disk",
            measure=offload_disk.measure_offload_disk,
            judge=lambda answers, who: offload_disk.judge_offload_disk(
                answers, who, setting.checkpoint_bytes
            ),
            limit_s=30,
        )
    ]
