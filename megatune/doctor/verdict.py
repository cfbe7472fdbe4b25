"""What the doctor says about one rung and about all of them. Pure: nothing here measures."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Json = Mapping[str, Any]
Answers = Mapping[int, Json]
"""Rank -> what it measured; ranks that did not answer are not in it."""
ByRank = Mapping[int, Any]
Verdict = Literal["ok", "warn", "fail", "n/a"]

SCHEMA = 1
_WORST_FIRST: tuple[Verdict, ...] = ("fail", "warn", "ok", "n/a")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Who is who in the job that is checked."""

    world_size: int
    nodes: Mapping[int, str]
    """Rank -> name of its node, of the ranks that have answered."""

    def name(self, rank: int) -> str:
        """`rank 3 on n2`."""
        return f"rank {rank} on {self.nodes.get(rank, 'an unknown host')}"

    def node_names(self) -> list[str]:
        """Every node once, in the order of its first rank."""
        return list(dict.fromkeys(self.nodes[rank] for rank in sorted(self.nodes)))

    def first_ranks(self) -> dict[str, int]:
        """Node -> its lowest rank."""
        found: dict[str, int] = {}
        for rank in sorted(self.nodes):
            found.setdefault(self.nodes[rank], rank)
        return found

    def of_first_ranks(self, answers: Answers) -> dict[str, Json]:
        """Node -> what its lowest rank measured; without nodes where that is nothing."""
        return {node: answers[rank] for node, rank in self.first_ranks().items() if answers.get(rank)}

    def num_ranks_on(self, node: str) -> int:
        """Ranks of a node that have answered."""
        return sum(other == node for other in self.nodes.values())


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is not as it should be. `nodes`: those that a job should leave out."""

    verdict: Literal["warn", "fail"]
    text: str
    fix: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The verdict on one rung. `by_rank` and `by_node`: the measured values, by rank number or node name."""

    verdict: Verdict
    message: str
    fix: str = ""
    measured: Json = field(default_factory=dict)
    by_rank: ByRank = field(default_factory=dict)
    by_node: Json = field(default_factory=dict)
    nodes_at_fault: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RungResult:
    """A rung with its verdict and the seconds that it took."""

    name: str
    seconds: float
    finding: Finding


def conclude(
    problems: Sequence[Problem],
    *,
    good: str,
    measured: Json | None = None,
    by_rank: ByRank | None = None,
    by_node: Json | None = None,
) -> Finding:
    """One finding out of all problems of a rung; `good` is its message when there is none."""
    verdicts = {problem.verdict for problem in problems}
    return Finding(
        verdict=next((verdict for verdict in _WORST_FIRST if verdict in verdicts), "ok"),
        message="; ".join(problem.text for problem in problems) or good,
        fix=" ".join(dict.fromkeys(problem.fix for problem in problems if problem.fix)),
        measured=measured or {},
        by_rank=by_rank or {},
        by_node=by_node or {},
        nodes_at_fault=tuple(dict.fromkeys(node for problem in problems for node in problem.nodes)),
    )


def not_available(reason: str) -> Finding:
    """The finding of a rung that could not be measured, or has nothing to measure here."""
    return Finding(verdict="n/a", message=reason)


def add_problems(finding: Finding, problems: Sequence[Problem]) -> Finding:
    """`finding` with more problems on top, which come first in its message."""
    if not problems:
        return finding
    said = [finding.message] if finding.verdict != "ok" and finding.message else []
    more = conclude(problems, good="")
    verdicts = {finding.verdict, more.verdict}
    return Finding(
        verdict=next(verdict for verdict in _WORST_FIRST if verdict in verdicts),
        message="; ".join([more.message, *said]),
        fix=" ".join(text for text in (more.fix, finding.fix) if text),
        measured=finding.measured,
        by_rank=finding.by_rank,
        by_node=finding.by_node,
        nodes_at_fault=tuple(dict.fromkeys((*more.nodes_at_fault, *finding.nodes_at_fault))),
    )


def exclude_option(results: Sequence[RungResult], nodes: Sequence[str]) -> str | None:
    """`--exclude=n3,n7` for sbatch and srun: the nodes at fault.

    None when no node is, and when most of them are: then the fault is not a node's. Nodes that did
    not answer at all count beside `nodes`, which are those that did.
    """
    blamed = sorted({node for result in results for node in result.finding.nodes_at_fault})
    num_nodes = len({*nodes, *blamed})
    return f"--exclude={','.join(blamed)}" if blamed and 2 * len(blamed) <= num_nodes else None


def passed(results: Sequence[RungResult]) -> bool:
    """Whether no rung failed."""
    return all(result.finding.verdict != "fail" for result in results)


def report(results: Sequence[RungResult], group: Group, links: Json | None) -> dict[str, Any]:
    """The answer of `megatune doctor --json`; its keys are listed in docs/doctor.md."""
    return {
        "schema": SCHEMA,
        "passed": passed(results),
        "world_size": group.world_size,
        "nodes": group.node_names(),
        "rungs": [_rung(result) for result in results],
        "exclude": exclude_option(results, group.node_names()),
        "links": links,
    }


def _rung(result: RungResult) -> dict[str, Any]:
    finding = result.finding
    return {
        "name": result.name,
        "verdict": finding.verdict,
        "seconds": round(result.seconds, 3),
        "message": finding.message,
        "fix": finding.fix or None,
        "measured": dict(finding.measured),
        "by_rank": {str(rank): value for rank, value in finding.by_rank.items()},
        "by_host": dict(finding.by_node),
    }


def median(values: Sequence[float]) -> float | None:
    """The median, None of nothing."""
    return statistics.median(values) if values else None
