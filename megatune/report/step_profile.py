"""Where the time of profiled steps went, from a trace in Chrome's format (what torch.profiler writes).

On a CPU every moment of the thread that trains belongs to the innermost range that covers it; on a GPU what its
kernels do is counted, and what is left of the step is idle.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Event = Mapping[str, Any]

STEP = "megatune::step"
"""The range around each step; `megatune::<phase>` ranges inside name the phases."""
PHASES = {
    "compute": "matrix products, attention, norms, loss",
    "gather": "bringing whole weights together",
    "reduce": "adding up gradients over data-parallel ranks",
    "tensor": "sums inside tensor-parallel groups",
    "wait": "waiting for other ranks before memory they share",
    "optimizer": "norm, clipping, update, new low-precision weights",
    "data": "rows, packing, copies to the device",
    "other": "Python between operations, hooks, metrics; on a GPU: idle",
}
_KERNELS = (
    (re.compile(r"AllGather|Broadcast", re.IGNORECASE), "gather"),
    (re.compile(r"ReduceScatter", re.IGNORECASE), "reduce"),
    (re.compile(r"AllReduce", re.IGNORECASE), "tensor"),
    (re.compile(r"adam|multi_tensor|foreach", re.IGNORECASE), "optimizer"),
    (re.compile(r"Memcpy HtoD", re.IGNORECASE), "data"),
)
# Operations of torch.distributed by their c10d names.
_COLLECTIVES = (
    (re.compile(r"c10d::.*allgather|gloo:all_gather"), "gather"),
    (re.compile(r"c10d::.*reduce_scatter|gloo:reduce_scatter"), "reduce"),
    (re.compile(r"c10d::allreduce|gloo:all_reduce"), "tensor"),
    (re.compile(r"c10d::barrier|gloo:barrier"), "wait"),
)


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """Seconds of all profiled steps together."""

    num_steps: int
    total_s: float
    by_phase: dict[str, float]
    """Keys of PHASES; their sum is `total_s`."""
    hottest: tuple[tuple[str, float, int], ...]
    """Operations or kernels with the most time of their own: name, seconds, calls."""
    is_gpu: bool

    def to_text(self) -> str:
        """One page."""
        lines = [
            f"{self.num_steps} step(s), {self.total_s / self.num_steps:.4g} s each"
            + (", by the kernels of the GPU" if self.is_gpu else ", by the thread that trains"),
            "",
        ]
        for phase, meaning in PHASES.items():
            seconds = self.by_phase[phase]
            lines.append(
                f"{phase:<10}{seconds / self.num_steps * 1e3:>10.1f} ms {seconds / self.total_s:>6.1%}  {meaning}"
            )
        lines += ["", "most time of their own, a step:"]
        for name, seconds, calls in self.hottest:
            lines.append(
                f"{seconds / self.num_steps * 1e3:>10.1f} ms {calls / self.num_steps:>8.0f} x  {name[:80]}"
            )
        return "\n".join(lines) + "\n"


def summarise(events: Sequence[Event]) -> StepProfile:
    """From the `traceEvents` of a trace. Raises ValueError when no step is in it."""
    steps = [
        event for event in events if event.get("name") == STEP and event.get("ph") == "X" and _is_host(event)
    ]
    if not steps:
        raise ValueError(f"the trace has no range {STEP}: it holds no whole step")
    total_us = sum(float(step["dur"]) for step in steps)
    kernels = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    own = _kernel_times(kernels) if kernels else _thread_times(events, steps)
    by_phase = dict.fromkeys(PHASES, 0.0)
    for (phase, _), (microseconds, _) in own.items():
        by_phase[phase] += microseconds / 1e6
    by_phase["other"] += max(0.0, total_us / 1e6 - sum(by_phase.values()))
    names: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for (_, name), (microseconds, count) in own.items():
        names[name] += microseconds / 1e6  # type: ignore[assignment]
        calls[name] += count
    return StepProfile(
        num_steps=len(steps),
        total_s=total_us / 1e6,
        by_phase=by_phase,
        hottest=tuple((name, seconds, calls[name]) for name, seconds in names.most_common(15)),
        is_gpu=bool(kernels),
    )


Own = dict[tuple[str, str], tuple[float, int]]
"""(phase, name) -> microseconds of its own, calls."""


def _kernel_times(kernels: Sequence[Event]) -> Own:
    own: Own = {}
    for kernel in kernels:
        name = str(kernel["name"])
        phase = next((phase for pattern, phase in _KERNELS if pattern.search(name)), "compute")
        _add(own, phase, name, float(kernel["dur"]))
    return own


def _thread_times(events: Sequence[Event], steps: Sequence[Event]) -> Own:
    """Walk the nested ranges of the steps' thread: each gets its time without that of the ranges inside."""
    thread = steps[0]["tid"]
    inside = sorted(
        (e for e in events if e.get("ph") == "X" and e.get("tid") == thread and _is_host(e)),
        key=lambda e: (float(e["ts"]), -float(e["dur"])),
    )
    own: Own = {}
    open_ranges: list[tuple[float, str, str]] = []  # end, phase, name
    for event in inside:
        start, duration, name = float(event["ts"]), float(event["dur"]), str(event["name"])
        while open_ranges and open_ranges[-1][0] <= start:
            open_ranges.pop()
        if not open_ranges and name != STEP:
            continue  # before, between or after the steps
        outer = open_ranges[-1][1] if open_ranges else "other"
        phase = _phase_of(name, outer)
        if open_ranges:
            _add(own, outer, open_ranges[-1][2], -duration, calls=0)
        _add(own, phase, name, duration)
        open_ranges.append((start + duration, phase, name))
    return own


def _phase_of(name: str, outer: str) -> str:
    own = name.removeprefix("megatune::")
    if own != name:
        return own if own in PHASES else "other"
    collective = next((phase for pattern, phase in _COLLECTIVES if pattern.search(name)), None)
    if collective is not None:
        return outer if outer in ("gather", "reduce", "optimizer", "wait") else collective
    return "compute" if outer == "other" and "::" in name else outer


def _is_host(event: Event) -> bool:
    return event.get("cat") in ("cpu_op", "user_annotation", "python_function")


def _add(own: Own, phase: str, name: str, microseconds: float, *, calls: int = 1) -> None:
    before, count = own.get((phase, name), (0.0, 0))
    own[phase, name] = before + microseconds, count + calls
