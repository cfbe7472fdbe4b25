"""Who is missing, by rank and host. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatune.doctor.verdict import Finding, Group, Problem, conclude


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Where a rank that has answered sits."""

    node: str
    local_rank: int
    local_world_size: int


def missing_nodes(
    seats: Mapping[int, Seat], world_size: int, promised: Sequence[str] | None
) -> dict[int, str | None]:
    """Missing rank -> the node that it should be on, None where nothing tells.

    `promised`: the node of each rank as the scheduler laid them out. It is believed only if all ranks
    that have answered sit there; else a missing rank is placed beside the answering ranks of its block
    (launchers number the ranks of a node without a gap).
    """
    trusted = promised is not None and len(promised) == world_size
    if trusted and promised is not None:
        trusted = all(promised[rank] == seat.node for rank, seat in seats.items())
    blocks: dict[int, str] = {}
    for rank, seat in seats.items():
        start = rank - seat.local_rank
        blocks.update((neighbour, seat.node) for neighbour in range(start, start + seat.local_world_size))
    return {
        rank: promised[rank] if trusted and promised is not None else blocks.get(rank)
        for rank in range(world_size)
        if rank not in seats
    }


def name_missing(missing: Mapping[int, str | None]) -> str:
    """The missing ranks by host.

    >>> name_missing({2: "n2", 3: "n2"})
    'ranks 2, 3 on n2'
    """
    by_node: dict[str | None, list[int]] = {}
    for rank, node in sorted(missing.items()):
        by_node.setdefault(node, []).append(rank)
    return "; ".join(
        f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} on {node or 'an unknown host'}"
        for node, ranks in by_node.items()
    )


def judge_presence(
    group: Group,
    missing: Mapping[int, str | None],
    *,
    waited_s: float,
    asked_nodes: int | None,
    seconds: Mapping[int, float],
) -> Finding:
    """The verdict on the rendezvous. `seconds`: after what time each rank had answered."""
    problems = []
    if missing:
        silent = {node for node in missing.values() if node is not None} - set(group.nodes.values())
        problems.append(
            Problem(
                verdict="fail",
                text=f"missing after {waited_s:.0f} s: {name_missing(missing)}; "
                f"{len(group.nodes)} of {group.world_size} ranks answered",
                fix="Look at the logs of these ranks and at their hosts: not started, still importing, or cut off.",
                nodes=tuple(sorted(silent)),
            )
        )
    num_nodes = len(group.node_names())
    if asked_nodes is not None and num_nodes != asked_nodes:
        problems.append(
            Problem(
                verdict="fail",
                text=f"{num_nodes} node(s) answered ({', '.join(group.node_names())}), --nodes asked for {asked_nodes}",
                fix="Start the doctor on all nodes: `srun --nodes N --ntasks-per-node M megatune doctor`.",
            )
        )
    slowest = max(seconds.values(), default=0.0)
    return conclude(
        problems,
        good=f"all {group.world_size} ranks on {num_nodes} node(s) met within {slowest:.1f} s",
        measured={"ranks": len(group.nodes), "nodes": num_nodes, "slowest_s": round(slowest, 3)},
        by_rank={rank: {"node": group.nodes.get(rank), "seconds": seconds.get(rank)} for rank in seconds},
    )


def unanswered(missing: Mapping[int, str | None], rung: str, waited_s: float) -> Problem:
    """The problem of ranks that were there before and did not answer at `rung`."""
    return Problem(
        verdict="fail",
        text=f"no answer within {waited_s:.0f} s at {rung}: {name_missing(missing)}",
        fix="The process hangs, is stopped or has ended: look at its log, and at its host (`dmesg`, `top`).",
        nodes=tuple(sorted({node for node in missing.values() if node is not None})),
    )
