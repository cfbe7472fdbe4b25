"""Latency and bandwidth between two nodes at a time, in rounds in which every node has one partner."""

import statistics
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from megatune.doctor.group import finish
from megatune.doctor.matmul import wait_for_device
from megatune.doctor.place import Place
from megatune.doctor.verdict import Answers, Finding, Group, Json, Problem, conclude, median, not_available
from megatune.units import format_bytes

_SIZES_BYTES = {"cpu": (8, 2**16, 2**20), "cuda": (8, 2**20, 2**24, 2**27)}
_TIMES = {"cpu": 6, "cuda": 5}
_MOST_ROUNDS = 8  # a node meets at most so many others: enough for a median, whatever the job's size
_SLOW_SHARE = 0.6

Pair = tuple[int, int]


def rounds(ranks: Sequence[int], most: int = _MOST_ROUNDS) -> list[list[Pair]]:
    """A round-robin tournament (the circle method): in each round a rank meets at most one other.

    >>> rounds([0, 1, 2])
    [[(1, 2)], [(0, 2)], [(0, 1)]]
    """
    circle: list[int | None] = [*ranks] if len(ranks) % 2 == 0 else [*ranks, None]
    found: list[list[Pair]] = []
    for _ in range(min(most, len(circle) - 1)):
        half = len(circle) // 2
        met = zip(circle[:half], reversed(circle[half:]), strict=True)
        found.append(sorted((min(a, b), max(a, b)) for a, b in met if a is not None and b is not None))
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return found


def inner_pairs(nodes: dict[int, str]) -> list[Pair]:
    """The first two ranks of every node that has two."""
    ranks_of: dict[str, list[int]] = {}
    for rank in sorted(nodes):
        ranks_of.setdefault(nodes[rank], []).append(rank)
    return [(ranks[0], ranks[1]) for ranks in ranks_of.values() if len(ranks) > 1]


def measure_pairs(place: Place) -> Json:
    """Seconds of a message of each size from one rank to its partner. Every rank calls it.

    First inside each node, then between the first ranks of the nodes. The lower rank of a pair tells.
    """
    nodes = dict(place.nodes)
    firsts = list(Group(world_size=len(nodes), nodes=nodes).first_ranks().values())
    schedule = [inner_pairs(nodes), *rounds(firsts)]
    found: dict[str, dict[str, float]] = {}
    for pairs in schedule:
        mine = next((pair for pair in pairs if place.rank.rank in pair), None)
        if mine is None:
            continue
        times = _play(mine, place)
        if place.rank.rank == mine[0]:
            found[f"{mine[0]}-{mine[1]}"] = times
    return found


def _play(pair: Pair, place: Place) -> dict[str, float]:
    """The shortest of several trips of each size.

    In turns: a moment in which others have the cores or the network falls on every size, not on all trips of one.
    """
    kind = place.device.type
    messages = [torch.zeros(num_bytes // 4, device=place.device) for num_bytes in _SIZES_BYTES[kind]]
    for message in messages:
        _there_and_back(message, pair, place)  # opens the connection
    turns = [[_there_and_back(message, pair, place) for message in messages] for _turn in range(_TIMES[kind])]
    return {
        str(num_bytes): min(trips) / 2
        for num_bytes, trips in zip(_SIZES_BYTES[kind], zip(*turns, strict=True), strict=True)
    }


def _there_and_back(message: torch.Tensor, pair: Pair, place: Place) -> float:
    wait_for_device(place.device)
    begun = time.perf_counter()
    for sender in pair:
        if place.rank.rank == sender:
            other = pair[1] if sender == pair[0] else pair[0]
            work = dist.isend(message, other)
        else:
            work = dist.irecv(message, sender)
        finish(work, place)
    return time.perf_counter() - begun


def split_kinds(answers: Answers, group: Group) -> tuple[dict[Pair, Json], dict[Pair, Json]]:
    """What was measured inside nodes, and between nodes, by pair of ranks."""
    intra: dict[Pair, Json] = {}
    inter: dict[Pair, Json] = {}
    for facts in answers.values():
        for name, times in facts.items():
            low, _, high = name.partition("-")
            pair = (int(low), int(high))
            same = group.nodes[pair[0]] == group.nodes[pair[1]]
            (intra if same else inter)[pair] = times
    return intra, inter


def points(pairs: dict[Pair, Json]) -> list[tuple[float, float]]:
    """(bytes, median seconds over all pairs) of every size: what a line is fitted to."""
    by_size: dict[int, list[float]] = {}
    for times in pairs.values():
        for size, seconds in times.items():
            by_size.setdefault(int(size), []).append(float(seconds))
    return [(float(size), statistics.median(values)) for size, values in sorted(by_size.items())]


def speeds(pairs: dict[Pair, Json]) -> dict[Pair, float]:
    """Bytes a second of the largest message of each pair."""
    found = {}
    for pair, times in pairs.items():
        size = max(times, key=int)
        found[pair] = int(size) / float(times[size])
    return found


def slow_nodes(pair_speeds: dict[Pair, float], group: Group) -> dict[str, float]:
    """Node -> its share of the median node's speed, of the nodes far below it.

    A node's speed is the median over its partners, of two the faster: one slow partner does not make
    it slow. Two nodes have one link, and nothing tells which end is slow.
    """
    partners: dict[str, list[float]] = {}
    for pair, speed in pair_speeds.items():
        for rank in pair:
            partners.setdefault(group.nodes[rank], []).append(speed)
    if len(partners) < 3:
        return {}
    own = {node: statistics.median_high(values) for node, values in partners.items()}
    middle = statistics.median_high(own.values())
    return {node: speed / middle for node, speed in own.items() if speed < _SLOW_SHARE * middle}


def judge_pairs(answers: Answers, group: Group) -> Finding:
    """A node whose links are far slower than those of the others holds up every collective."""
    intra, inter = split_kinds(answers, group)
    if not intra and not inter:
        return not_available("there are no two ranks to measure between")
    inter_speeds = speeds(inter)
    problems = [
        Problem(
            verdict="fail",
            text=f"the links of {node} run at {share:.0%} of the other nodes' speed",
            fix="Leave the node out, and have its cable, port and interface looked at (`ip -s link`, `ethtool`).",
            nodes=(node,),
        )
        for node, share in slow_nodes(inter_speeds, group).items()
    ]
    good = [
        f"{kind} {format_bytes(middle)}/s, {1e6 * latency_s:.0f} us"
        for kind, pairs in (("inside a node", intra), ("between nodes", inter))
        if (middle := median(list(speeds(pairs).values()))) and (latency_s := points(pairs)[0][1])
    ]
    return conclude(
        problems,
        good=", ".join(good),
        measured={
            f"{group.nodes[low]}:{low} {group.nodes[high]}:{high}": dict(times)
            for (low, high), times in {**intra, **inter}.items()
        },
    )
