"""Predicted against published step times: `python benchmarks/planner.py [--json] [--rows FILE]`.

A row of FILE: {"name", "gpu", "config": {a config.json}, "seq", "nodes", "gpus_per_node", "micro_batch",
"accumulation", "tp", "zero_stage", "checkpointing", "attention", "fused", "pipeline_stages",
"virtual_stages", "step_seconds"}; those without a default here are required.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from published import MORE_ROWS, OTHER_ROWS, ROWS, Row

from megatune.plan.hardware import accelerator_named
from megatune.plan.layout import Layout
from megatune.plan.network import network_of
from megatune.plan.practice import Practice
from megatune.plan.speeds import speeds_of
from megatune.plan.step_time import Phases, step_phases
from megatune.plan.weights import count_model
from megatune.plan.work import Device
from megatune.report.tables import render_table, show


def predicted_s(row: Row) -> float:
    """Seconds of the row's step."""
    return predicted(row).total_s


def predicted(row: Row) -> Phases:
    """The row's step, by the constants of its GPU's generation."""
    facts = replace(accelerator_named(row.gpu), **row.machine)
    speeds = speeds_of(facts.generation)
    if speeds is None:
        raise SystemExit(f"{row.name}: no constants for {row.gpu}")
    return step_phases(
        count_model(row.config),
        row.layout,
        seq=row.seq,
        ranks_per_node=row.ranks_per_node,
        device=Device(facts=facts, speeds=speeds, peak_flops=facts.peak_bf16_flops),
        network=network_of(facts, speeds),
        practice=row.practice,
    )


def error_of(row: Row) -> float:
    """Predicted over published, less 1."""
    return predicted_s(row) / row.step_s - 1


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """How many rows, and the median and worst absolute error."""
    errors = [abs(error_of(row)) for row in rows]
    return {"rows": len(rows), "median": median(errors), "worst": max(errors)}


def groups() -> dict[str, list[Row]]:
    """The rows by what they are good for."""
    by_gpu: dict[str, list[Row]] = {}
    for row in ROWS:
        by_gpu.setdefault(f"{row.source}, {row.gpu.partition('-')[0].upper()}", []).append(row)
    by_gpu["other papers, never fitted"] = OTHER_ROWS
    for generation in ("a100", "h100"):
        more = [(number, row) for number, row in enumerate(MORE_ROWS) if row.gpu.startswith(generation)]
        by_gpu[f"further llm-foundry, {generation.upper()}, fitted"] = [row for n, row in more if n % 2 == 0]
        by_gpu[f"further llm-foundry, {generation.upper()}, held out"] = [row for n, row in more if n % 2]
    return by_gpu


def read_rows(path: Path) -> list[Row]:
    """Rows of a JSON list, see the module's docstring."""
    return [_row(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def _row(entry: dict[str, Any]) -> Row:
    degree, stages = entry.get("tp", 1), entry.get("pipeline_stages", 1)
    checkpointing = entry.get("checkpointing", False)
    return Row(
        source="given",
        name=entry["name"],
        gpu=entry["gpu"],
        config=entry["config"],
        seq=entry["seq"],
        layout=Layout(
            tensor_parallel=degree,
            data_parallel=entry["nodes"] * entry["gpus_per_node"] // degree // stages,
            micro_batch=entry["micro_batch"],
            accumulation=entry.get("accumulation", 1),
            gradient_checkpointing=checkpointing,
            zero_stage=entry.get("zero_stage", 3),
        ),
        practice=Practice(
            attention=entry.get("attention", "flash"),
            fused_elementwise=entry.get("fused", True),
            recompute="full" if checkpointing else "none",
            pipeline_stages=stages,
            virtual_stages=entry.get("virtual_stages", 1),
        ),
        step_s=entry["step_seconds"],
        ranks_per_node=entry["gpus_per_node"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, help="a JSON list of rows of your own")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {"given": read_rows(options.rows)} if options.rows else groups()
    rows = [
        {
            "source": row.source,
            "row": row.name,
            "published_s": row.step_s,
            "predicted_s": predicted_s(row),
            "error": f"{error_of(row):+.1%}",
        }
        for members in found.values()
        for row in members
    ]
    totals = [{"group": name, **summary(members)} for name, members in found.items()]
    if not options.rows:
        totals.append({"group": "all that the test bounds", **summary(ROWS)})
    shown = [{**t, "median": f"{t['median']:.1%}", "worst": f"{t['worst']:.1%}"} for t in totals]
    show({"rows": rows, "groups": totals}, render_table(rows), render_table(shown), as_json=options.json)


if __name__ == "__main__":
    main()
