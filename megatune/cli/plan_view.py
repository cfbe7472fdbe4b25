"""What `megatune plan` prints for people."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from megatune.plan.assess import Assessment, Question
from megatune.plan.layout_keys import overrides_for
from megatune.plan.search import Found, pareto_front
from megatune.report.tables import render_table
from megatune.units import format_bytes, format_count, format_duration, format_ratio

_SHOWN = 10
"""Rows of the Pareto table and of the rejected layouts that people see; --json has all."""


def plan_views(
    answer: dict[str, Any], question: Question, chosen: Assessment, found: Found, given: list[str]
) -> list[Table | Text]:
    """The answer for people; `given`: what is to be said of the run file's keys."""
    model, ledger = question.work.model, chosen.ledger
    layout, ahead = chosen.layout, answer["forecast"]
    tokens = layout.global_sequences * question.work.seq
    head = [
        f"model: {format_count(model.num_params)} parameters, {tokens} tokens a step on "
        f"{question.num_devices} x {answer['devices']['name']}",
        f"layout: {layout}",
        "run file: " + " ".join(overrides_for(question.run, layout)),
        *given,
        f"step: {seconds_text(chosen.step_s)}, {rate_text(chosen)} tokens/s a device, MFU {format_ratio(chosen.mfu)} "
        f"(causal {format_ratio(chosen.mfu_causal)}), HFU {format_ratio(chosen.hfu)}",
        f"whole run: {format_duration(ahead['total_s'])}, jobs {ahead['num_jobs'] or 'n/a'}, GPU-hours "
        f"{_short(ahead['gpu_hours'])}, energy {_short(ahead['energy_kwh'])} kWh, cost {_short(ahead['cost'])}",
    ]
    peaks = ", ".join(f"{name} {format_bytes(size)}" for name, size in ledger.host_peaks.items())
    memory = [_bytes_table(f"one device, at the {ledger.moment}", ledger.device, ledger.device_limit)]
    if ledger.host:
        title = f"host memory of one node (at its most: {peaks})"
        memory.append(_bytes_table(title, ledger.host, ledger.host_limit))
    phases = answer["time"]["by_phase"] or {}
    front = [
        {
            "layout": str(a.layout),
            "device": format_bytes(a.ledger.device_total),
            "step": seconds_text(a.step_s),
        }
        for a in pareto_front(found.fitting)[:_SHOWN]
    ]
    rejected = [{"layout": one.words, "reason": one.reason} for one in found.rejected_beside(chosen)]
    return [
        *map(Text, head),
        *memory,
        *(
            [render_table([{"phase": k, "seconds": v} for k, v in phases.items()], title="one step")]
            if phases
            else []
        ),
        render_table(front, title="memory against speed: no other layout beats these in both"),
        *map(Text, (*answer["notes"], *answer["reasons"], *filter(None, [found.skipped]))),
        render_table(
            rejected[:_SHOWN], title=f"rejected: {len(rejected)}, of which {_SHOWN} here (--json has all)"
        ),
    ]


def _bytes_table(title: str, sizes: Mapping[str, int], limit: int | None) -> Table:
    rows = [{"component": name, "bytes": format_bytes(size)} for name, size in sizes.items() if size]
    total = {"component": f"total, of {format_bytes(limit)}", "bytes": format_bytes(sum(sizes.values()))}
    return render_table([*rows, total], title=title)


def seconds_text(seconds: float | None) -> str:
    """Seconds of a step."""
    return "n/a" if seconds is None else f"{seconds:.3g} s"


def rate_text(judged: Assessment) -> str:
    """Tokens a second of one device."""
    rate = judged.tokens_per_second_per_device
    return "n/a" if rate is None else f"{rate:,.0f}"


def _short(value: float | None) -> str:
    return "n/a" if value is None else f"{value:,.4g}"
