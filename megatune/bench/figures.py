"""Figures drawn from a record: what each case reached of the machine's peak, and how it scales."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatune.bench.compare import Spread
from megatune.bench.inputs import MODELS
from megatune.plan.flops import step_flops
from megatune.plan.model_config import read_config
from megatune.plan.weights import count_model

_RANKS = re.compile(r",?\s*\d+\s*(?:ranks?|nodes?)\b")


@dataclass(frozen=True, kw_only=True)
class CaseFigures:
    """One training case of a record."""

    name: str
    ranks: int
    tokens_per_second: Spread
    cpu_seconds_per_token: Spread
    peak_memory_bytes: int | None
    peak_share: float | None
    """Model operations a second over the measured matrix products of all ranks; None where the peak is not known."""
    refused: str | None
    """Why it is not compared with its baseline."""


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
        peak_memory_bytes=case["peak_memory_bytes"],
        peak_share=_peak_share(case, record),
        refused=ratio if isinstance(ratio, str) else None,
    )


def _peak_share(case: Mapping[str, Any], record: Mapping[str, Any]) -> float | None:
    """By the model's own operations: rows full of tokens, all of them targets (the made-up rows of a suite)."""
    work = case["work"]
    nodes = work.get("nodes") or 1
    computing = ranks_computing(work["ranks"] // nodes, record["machine"])
    peaks = _peaks_of(record, computing)
    folder = MODELS / work["model"] if (MODELS / work["model"]).is_dir() else Path(work["model"])
    if not peaks or work["rows"] != "full" or not (folder / "config.json").is_file():
        return None
    peak = _fastest_products(peaks["flops_per_s"], work["precision"])
    if peak is None:
        return None
    model = count_model(read_config(folder / "config.json"))
    flops = step_flops(
        num_matmul_params=model.num_matmul_params,
        num_head_params=model.num_head_params,
        num_layers=model.shape.num_layers,
        attention_width=model.shape.attention_width,
        tokens=work["max_seq_length"],
        target_tokens=work["max_seq_length"],
        squared_lengths=work["max_seq_length"] ** 2,
        gradient_checkpointing=False,
    )
    rows_a_second = case["tokens_per_second"]["median"] / work["max_seq_length"]
    return float(flops.model * rows_a_second / (peak * computing * nodes))


def ranks_computing(ranks: int, machine: Mapping[str, Any]) -> int:
    """At the same time, of `ranks`: without GPUs no more than there are cores."""
    return ranks if machine["gpus"] else min(ranks, machine["cpu_cores"])


def _peaks_of(record: Mapping[str, Any], ranks: int) -> Mapping[str, Any] | None:
    """What so many ranks reached at once."""
    measured = [record.get("peaks"), *record.get("other_peaks", [])]
    return next((peaks for peaks in measured if peaks and peaks["ranks"] == ranks), None)


def _fastest_products(flops_per_s: Mapping[str, float], precision: str) -> float | None:
    """For bf16 those in fp32 too, which some processors multiply faster (docs/speed.md)."""
    usable = ("bf16", "fp32") if precision == "bf16" else (precision,)
    return max((flops_per_s[name] for name in usable if name in flops_per_s), default=None)
