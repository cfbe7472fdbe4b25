"""The software of every rank, and who deviates from the others."""

import importlib.metadata
import platform
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Literal

import torch

from megatune.doctor.verdict import Answers, Finding, Group, Json, Problem, conclude
from megatune.launch.devices import gpu_driver_version
from megatune.launch.environment import source_commit

_PACKAGES = ("megatune", "torch", "deepspeed", "transformers", "datasets", "numpy")
# Ranks with different kernels or drivers train together all the same; different libraries compute,
# shard or serialise differently and hang or diverge.
_MAY_DIFFER = ("kernel", "driver")


def measure_versions(*, asks_git: bool) -> Json:
    """Name -> version, None where there is none. `asks_git`: for the commit; once a node, it is slow on NFS."""
    facts: dict[str, str | None] = {"python": platform.python_version()}
    facts |= {name: _installed(name) for name in _PACKAGES}
    facts["commit"] = source_commit() if asks_git else None
    facts["nccl"] = _nccl_version()
    facts["driver"] = gpu_driver_version()
    facts["kernel"] = platform.release()
    facts["prefix"] = sys.prefix
    return facts


def judge_versions(answers: Answers, group: Group) -> Finding:
    """All ranks must have the same software: names those that differ from the majority."""
    names = dict.fromkeys(name for facts in answers.values() for name in facts if name != "prefix")
    problems, agreed = [], {}
    for name in names:
        # Only the first rank of a node knows the commit, and a None of another tells nothing.
        values = {
            rank: facts.get(name) for rank, facts in answers.items() if name != "commit" or facts.get(name)
        }
        usual, odd = find_odd(values)
        agreed[name] = usual
        if odd:
            problems.append(_deviation(name, usual, odd, group))
    known = ", ".join(f"{name} {value}" for name, value in agreed.items() if value and name in _SHOWN)
    return conclude(problems, good=f"the same everywhere: {known}", measured=agreed, by_rank=answers)


_SHOWN = ("python", "torch", "deepspeed", "transformers", "megatune", "nccl", "driver")


def find_odd(values: Mapping[int, str | None]) -> tuple[str | None, dict[int, str | None]]:
    """The value that most ranks have, and the ranks that have another. Of equals the lowest rank's counts.

    >>> find_odd({0: "2.13", 1: "2.13", 2: "2.12"})
    ('2.13', {2: '2.12'})
    """
    counts = Counter(values[rank] for rank in sorted(values))
    usual = counts.most_common(1)[0][0] if counts else None
    return usual, {rank: value for rank, value in sorted(values.items()) if value != usual}


def _deviation(name: str, usual: str | None, odd: Mapping[int, str | None], group: Group) -> Problem:
    by_node: dict[str, set[str]] = {}
    for rank, value in odd.items():
        by_node.setdefault(group.nodes[rank], set()).add(value or "none")
    found = "; ".join(f"{', '.join(sorted(values))} on {node}" for node, values in by_node.items())
    ranks = ", ".join(map(str, odd))
    verdict: Literal["warn", "fail"] = "warn" if name in _MAY_DIFFER else "fail"
    return Problem(
        verdict=verdict,
        text=f"{name} is {usual or 'none'} on most ranks, but {found} (rank {ranks})",
        fix="Use one environment for all nodes: the same container, module or shared virtual environment."
        if verdict == "fail"
        else "",
        nodes=tuple(by_node) if verdict == "fail" else (),
    )


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nccl_version() -> str | None:
    if not torch.cuda.is_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))
