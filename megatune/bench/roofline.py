"""The least time that a step of a case can take on its machine: what was measured of products, memory and links.

Floors, of any program that trains the same rows: the model's own operations at the rate of the matrix products; every
weight read in forward and backward and its optimizer state read and written once, at the rate of a copy; and what the
ranks of a known layout have to send each other, at the rate of one large all-reduce (arXiv:2104.04473, section 3).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatune.bench.inputs import MODELS
from megatune.plan.flops import model_flops
from megatune.plan.model_config import read_config
from megatune.plan.states import ELEMENT_BYTES
from megatune.plan.weights import ModelWeights, count_model

_DEGREES = re.compile(r"\bdp=(\d+) x tp=(\d+)\b")
_STATE_BYTES = 28
"""Of a weight in the optimizer step: gradient, master and two moments read, the last three written, all fp32."""


@dataclass(frozen=True, kw_only=True)
class Floors:
    """Shares of a step's time that each resource needs at the least; None where that is not known."""

    products: float
    memory: float
    links: float | None

    @property
    def highest(self) -> float:
        """How near the step is to what the machine can do at best."""
        return max(self.products, self.memory, self.links or 0.0)


def floors(case: Mapping[str, Any], record: Mapping[str, Any]) -> Floors | None:
    """Of a training case of a record: rows full of tokens, all of them targets (the made-up rows of a suite).

    None without measured peaks, or where the model's folder is not here.
    """
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
    rows_a_second = case["tokens_per_second"]["median"] / work["max_seq_length"]
    step_s = work["micro_batch"] * work["ranks"] / rows_a_second
    together, element = computing * nodes, ELEMENT_BYTES[work["precision"]]
    memory_s = model.num_params * (_STATE_BYTES + 3 * element) / (peaks["memory_bytes_per_s"] * together)
    link = _link_between(record, nodes, work["ranks"]) if nodes > 1 else peaks.get("link_bytes_per_s")
    sent = _sent_bytes(model, work, case["engine"])
    return Floors(
        products=_row_flops(model, work["max_seq_length"]) * rows_a_second / (peak * together),
        memory=memory_s / step_s,
        links=None if not link or sent is None else sent / link / step_s,
    )


def ranks_computing(ranks: int, machine: Mapping[str, Any]) -> int:
    """At the same time, of `ranks`: without GPUs no more than there are cores."""
    return ranks if machine["gpus"] else min(ranks, machine["cpu_cores"])


def _row_flops(model: ModelWeights, tokens: int) -> float:
    return model_flops(model, tokens=tokens, squared_lengths=tokens**2, gradient_checkpointing=False).model


def _sent_bytes(model: ModelWeights, work: Mapping[str, Any], engine: str) -> float | None:
    """By a rank in a step, by the ring's count; None for a program that does not tell its layout.

    Data parallelism: gradients scattered and weights gathered once. Tensor parallelism: four sums of a block's
    hidden states.
    """
    found = _DEGREES.search(engine)
    if found is None:
        return None
    dp, tp = map(int, found.groups())
    element = ELEMENT_BYTES[work["precision"]]
    tokens = work["micro_batch"] * work["ranks"] * work["max_seq_length"] / dp
    over_data = 2 * (dp - 1) / dp * element * model.num_params / tp
    a_block = 4 * 2 * (tp - 1) / tp * element * tokens * model.shape.hidden_size
    return float(over_data + model.shape.num_layers * a_block)


def _peaks_of(record: Mapping[str, Any], ranks: int) -> Mapping[str, Any] | None:
    """What so many ranks reached at once."""
    measured = [record.get("peaks"), *record.get("other_peaks", [])]
    return next((peaks for peaks in measured if peaks and peaks["ranks"] == ranks), None)


def _link_between(record: Mapping[str, Any], nodes: int, ranks: int) -> float | None:
    """What a rank sends while all of so many on so many nodes do."""
    links = record.get("node_links") or ()
    found = (link for link in links if (link["nodes"], link["ranks"]) == (nodes, ranks))
    return next((link["link_bytes_per_s"] for link in found), None)


def _fastest_products(flops_per_s: Mapping[str, float], precision: str) -> float | None:
    """For bf16 those in fp32 too, which some processors multiply faster (docs/speed.md)."""
    usable = ("bf16", "fp32") if precision == "bf16" else (precision,)
    return max((flops_per_s[name] for name in usable if name in flops_per_s), default=None)
