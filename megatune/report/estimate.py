"""What the planner expected of a run beside what was measured, component by component."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from megatune.report.metrics import settled_steps
from megatune.report.tables import render_table
from megatune.units import format_bytes

_STATES = ("weights", "gradients", "optimizer")
_ADDED = (
    "gathered_weights",
    "second_weights",
    "gradient_buckets",
    "activations",
    "loss",
    "step_gradients",
    "mapped_states",
    "snapshot",
)
"""What steps hold beside the states: allocators do not say which is which."""
_OUTSIDE = ("nccl", "framework")
_SHARED = "shared_memory"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One component, or the step. None: not planned, or not measured."""

    name: str
    estimated: float | None
    measured: float | None

    @property
    def error(self) -> float | None:
        """Estimate over measurement, less 1."""
        return None if self.estimated is None or not self.measured else self.estimated / self.measured - 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The last start of a run: memory of its first rank in bytes, and seconds of a step."""

    memory: tuple[Compared, ...]
    step_seconds: Compared

    def as_object(self) -> dict[str, Any]:
        """For `--json`."""
        rows = (*self.memory, self.step_seconds)
        return {one.name: {**asdict(one), "error": one.error} for one in rows}


def compare(entries: Sequence[Mapping[str, Any]]) -> Comparison | None:
    """The comparison that the lines of a metrics file allow; None where nothing was planned."""
    starts = [number for number, entry in enumerate(entries) if entry["event"] == "run"]
    own = entries[starts[-1] :] if starts else []
    plan = next((entry for entry in reversed(own) if entry["event"] == "plan"), None)
    if plan is None or not plan["device_bytes"]:
        return None
    memory: Mapping[str, Any] = next((e for e in reversed(own) if e["event"] == "memory"), {})
    steps = [step["step_seconds"] for step in settled_steps(own)]
    return Comparison(
        memory=_memory_rows(own[0], plan, memory),
        step_seconds=Compared(
            name="step seconds",
            estimated=plan["step_seconds"],
            measured=statistics.median(steps) if steps else None,
        ),
    )


def comparison_table(comparison: Comparison) -> Table:
    """For people."""
    rows = [
        {
            "": one.name,
            "estimated": format_bytes(_whole(one.estimated)),
            "measured": format_bytes(_whole(one.measured)),
            "error": _percent(one.error),
        }
        for one in comparison.memory
    ]
    step = comparison.step_seconds
    rows.append(
        {
            "": step.name,
            "estimated": _seconds(step.estimated),
            "measured": _seconds(step.measured),
            "error": _percent(step.error),
        }
    )
    return render_table(rows, title="planned and measured, first rank")


def _memory_rows(
    run: Mapping[str, Any], plan: Mapping[str, Any], memory: Mapping[str, Any]
) -> tuple[Compared, ...]:
    planned, on_gpu = plan["device_bytes"], memory.get("on_host") is False
    framework, peak = memory.get("framework"), memory.get("peak")
    states = {name: planned.get(name, 0) + _offloaded(run, plan, name) for name in _STATES}
    rows = [Compared(name=name, estimated=size, measured=memory.get(name)) for name, size in states.items()]
    held = sum(memory.get(name, 0) for name in _STATES if planned.get(name, 0) > 0)
    added = None if peak is None or framework is None else peak - framework - held
    rows.append(
        Compared(
            name="what steps add",
            estimated=sum(planned.get(name, 0) for name in _ADDED)
            + (0 if on_gpu else planned["fragmentation"]),
            measured=added,
        )
    )
    if on_gpu:
        rows.append(
            Compared(
                name="fragmentation",
                estimated=planned["fragmentation"],
                measured=memory.get("fragmentation"),
            )
        )
    if planned.get(_SHARED):
        rows.append(Compared(name="shared memory", estimated=planned[_SHARED], measured=memory.get(_SHARED)))
    outside = sum(planned.get(name, 0) for name in _OUTSIDE)
    rows.append(Compared(name="framework", estimated=outside, measured=framework))
    total = None if peak is None else peak + (memory.get("fragmentation") or 0) + (memory.get(_SHARED) or 0)
    if planned.get(_SHARED) and memory.get(_SHARED) is None:
        total = None
    rows.append(Compared(name="total", estimated=sum(planned.values()), measured=total))
    return tuple(rows)


def _offloaded(run: Mapping[str, Any], plan: Mapping[str, Any], name: str) -> float:
    """A rank's part of what its node holds in host memory and on its disk for it."""
    ranks = (run.get("world_size") or 1) / (run.get("num_nodes") or 1)
    on_disk = plan.get("disk_bytes", 0) if name == "optimizer" else 0
    return float(plan["host_bytes"].get(f"offloaded_{name}", 0) + on_disk) / ranks


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _percent(error: float | None) -> str:
    return "n/a" if error is None else f"{error:+.1%}"


def _seconds(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g} s"
