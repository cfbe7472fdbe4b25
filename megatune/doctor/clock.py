"""How far the clocks of the nodes are apart, by round trips over the store."""

import time

from megatune.doctor.place import Place
from megatune.doctor.verdict import Answers, Finding, Group, Json, Problem, conclude

_ROUND_TRIPS = 3
_MOST_S = 1.0
_TURN_S = 5.0  # for one node to answer, so that a silent one does not use up the time of all


def measure_clock(place: Place) -> Json:
    """Seconds that this node's clock is ahead of rank 0's, with the round trip that bounds the error.

    Every rank calls it. The first rank of each node asks rank 0 for the time; one after another, because
    a question that waits in a queue would look like a difference.
    """
    if place.rank.rank == 0:
        for rank in place.other_firsts():
            _answer(place, rank)
        return {"ahead_s": 0.0, "round_trip_s": 0.0}
    if place.rank.rank not in place.other_firsts():
        return {"ahead_s": None, "round_trip_s": None}
    place.exchange.wait_for(f"clock/turn/{place.rank.rank}", place.left_s())
    trips = [_ask(place, number) for number in range(_ROUND_TRIPS)]
    round_trip_s, ahead_s = min(trips)
    return {"ahead_s": round(ahead_s, 6), "round_trip_s": round(round_trip_s, 6)}


def judge_clock(answers: Answers, group: Group) -> Finding:
    """More than a second apart: file times, tokens and logs of the nodes do not fit together."""
    known = {rank: facts for rank, facts in answers.items() if facts["ahead_s"] is not None}
    problems = [
        Problem(
            verdict="warn",
            text=f"the clock of {group.nodes[rank]} is {abs(facts['ahead_s']):.1f} s "
            f"{'ahead of' if facts['ahead_s'] > 0 else 'behind'} that of {group.nodes.get(0, 'rank 0')}",
            fix="Start the time service of that host (chrony, ntpd).",
        )
        for rank, facts in known.items()
        if abs(facts["ahead_s"]) - facts["round_trip_s"] / 2 > _MOST_S
    ]
    largest = max((abs(facts["ahead_s"]) for facts in known.values()), default=0.0)
    return conclude(
        problems,
        good=f"at most {largest * 1e3:.1f} ms apart",
        measured={"largest_s": largest},
        by_node={group.nodes[rank]: facts for rank, facts in known.items()},
    )


def _answer(place: Place, rank: int) -> None:
    exchange = place.exchange
    exchange.put(f"clock/turn/{rank}", True)
    for number in range(_ROUND_TRIPS):
        try:
            exchange.wait_for(f"clock/ask/{rank}/{number}", min(_TURN_S, place.left_s()))
        except TimeoutError:
            return  # its own missing answer names it
        exchange.put(f"clock/reply/{rank}/{number}", time.time())


def _ask(place: Place, number: int) -> tuple[float, float]:
    """Round trip and lead over rank 0's clock, in seconds."""
    rank = place.rank.rank
    before = time.time()
    place.exchange.put(f"clock/ask/{rank}/{number}", True)
    theirs = float(place.exchange.wait_for(f"clock/reply/{rank}/{number}", place.left_s()))
    after = time.time()
    return after - before, (before + after) / 2 - theirs
