"""Who measures with whom, and which node is slow."""

import itertools

import pytest

from megatune.doctor.pairs import inner_pairs, judge_pairs, points, rounds, slow_nodes
from megatune.doctor.verdict import Group


@pytest.mark.parametrize("num_nodes", [2, 3, 4, 5, 8])
def test_every_pair_meets_once_and_nobody_is_in_two_places(num_nodes):
    schedule = rounds(range(num_nodes), most=100)

    met = [pair for pairs in schedule for pair in pairs]
    assert sorted(met) == list(itertools.combinations(range(num_nodes), 2))
    for pairs in schedule:
        ranks = [rank for pair in pairs for rank in pair]
        assert len(ranks) == len(set(ranks))


def test_many_nodes_meet_a_bounded_number_of_partners():
    schedule = rounds(range(1000), most=8)

    assert len(schedule) == 8
    assert all(len(pairs) == 500 for pairs in schedule)


def test_inside_a_node_its_first_two_ranks_measure():
    assert inner_pairs({0: "a", 1: "a", 2: "a", 3: "b", 4: "c", 5: "c"}) == [(0, 1), (4, 5)]


def speeds(slow: int | None, num_nodes: int) -> dict[tuple[int, int], float]:
    return {pair: 1e8 if slow in pair else 1e9 for pair in itertools.combinations(range(num_nodes), 2)}


def group(num_nodes: int) -> Group:
    return Group(world_size=num_nodes, nodes={rank: f"n{rank + 1}" for rank in range(num_nodes)})


@pytest.mark.parametrize("num_nodes", [3, 4, 5, 8])
def test_the_slow_node_is_named_and_its_partners_are_not(num_nodes):
    for slow in range(num_nodes):
        assert slow_nodes(speeds(slow, num_nodes), group(num_nodes)) == {f"n{slow + 1}": 0.1}
    assert slow_nodes(speeds(None, num_nodes), group(num_nodes)) == {}


def test_of_two_nodes_none_is_blamed():
    assert slow_nodes(speeds(1, 2), group(2)) == {}


def test_the_verdict_on_a_slow_cable_gives_the_node_to_leave_out():
    answers: dict[int, dict[str, dict[str, float]]] = {rank: {} for rank in range(4)}
    for (low, high), speed in speeds(2, 4).items():
        answers[low][f"{low}-{high}"] = {"8": 1e-4, "1000000": 1e6 / speed}

    finding = judge_pairs(answers, group(4))

    assert finding.verdict == "fail"
    assert "the links of n3 run at 10% of the other nodes' speed" in finding.message
    assert finding.nodes_at_fault == ("n3",)


def test_a_line_is_fitted_to_the_median_pair():
    pairs = {(0, 1): {"8": 1.0, "16": 2.0}, (0, 2): {"8": 3.0, "16": 2.0}, (1, 2): {"8": 1.5, "16": 9.0}}

    assert points(pairs) == [(8.0, 1.5), (16.0, 2.0)]
