"""Figures drawn from a record: how near each case is to what the machine can do, and how it scales."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatune.bench.compare import Spread
from megatune.bench.roofline import Floors, floors

_RANKS = re.compile(r",?\s*\d+\s*(?:ranks?|nodes?)\b")


@dataclass(frozen=True, kw_only=True)
class CaseFigures:
    """One training case of a record."""

    name: str
    ranks: int
    tokens_per_second: Spread
    cpu_seconds_per_token: Spread
    floors: Floors | None
    """None where the machine's peaks are not known."""
    refused: str | None
    """Why it is not compared with its baseline."""

    @property
    def peak_share(self) -> float | None:
        """Model operations a second over the measured matrix products of all ranks."""
        return None if self.floors is None else self.floors.products


def training_cases(record: Mapping[str, Any]) -> list[CaseFigures]:
    """The cases that trained."""
    return [_figures(case, record) for case in record["cases"] if case.get("tokens_per_second")]


def scaling(cases: list[CaseFigures]) -> dict[str, list[CaseFigures]]:
    """Lines of cases that differ in the number of ranks alone, by their common name; each has two points or more."""
    lines: dict[str, list[CaseFigures]] = defaultdict(list)
    for case in cases:
        lines[_RANKS.sub("", case.name).strip(" ,")].append(case)
    return {
        name: sorted(points, key=lambda point: point.ranks)
        for name, points in lines.items()
        if len({point.ranks for point in points}) > 1
    }


def _figures(case: Mapping[str, Any], record: Mapping[str, Any]) -> CaseFigures:
    work, ratio = case["work"], case["to_baseline"]
    return CaseFigures(
        name=case["name"],
        ranks=work["ranks"],
        tokens_per_second=Spread(**case["tokens_per_second"]),
        cpu_seconds_per_token=Spread(**case["cpu_seconds_per_token"]),
        floors=floors(case, record),
        refused=ratio if isinstance(ratio, str) else None,
    )
