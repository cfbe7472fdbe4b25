"""What `megatune submit` prints of the plan; what a login node cannot know is n/a, with the reason."""

from megatune.launch.slurm.preview import Planned, Preview
from megatune.plan.answer import fits
from megatune.plan.forecast import STEPS_NEED
from megatune.plan.search import why_too_big
from megatune.units import format_bytes, format_count, format_duration

_SPEEDS_UNKNOWN = "no speeds are known for this device or precision"
_GPU_UNKNOWN = "gpu is not set in a site profile"


def plan_lines(seen: Preview, *, num_runs: int = 1) -> list[str]:
    """The first run of a job in words."""
    ranks, nodes = seen.request.num_ranks, seen.request.nodes
    return [
        *([f"array: {num_runs} runs; the first one:"] if num_runs > 1 else []),
        f"ranks: {ranks} on {nodes} node(s), tp={seen.tensor_parallel} x dp={seen.data_parallel}",
        f"batch: {seen.sequences_per_step} sequences ({seen.tokens_per_step} tokens) a step = "
        f"{seen.micro_batch} x {seen.accumulation} accumulation x {seen.data_parallel}",
        *([str(seen.choice)] if seen.choice else []),
        *([f"plan: n/a ({seen.why_not})"] if seen.planned is None else _planned_lines(seen, seen.planned)),
        f"time limit: {format_duration(seen.request.time_limit_s)}",
    ]


def _planned_lines(seen: Preview, planned: Planned) -> list[str]:
    judged = planned.judged
    lines = [
        f"model: {format_count(planned.num_params)} parameters",
        f"device memory: {format_bytes(judged.ledger.device_total)} a rank, {_room(planned)}",
        f"host memory: {format_bytes(seen.host_bytes_per_node)} on each node",
    ]
    if judged.step_s is None or judged.tokens_per_second_per_device is None:
        return [*lines, f"step time, whole run: n/a ({_why_no_times(seen, planned)})"]
    rate = judged.tokens_per_second_per_device * seen.request.num_ranks
    whole = format_duration(seen.total_s)
    if seen.num_steps is None:
        whole = f"n/a (it needs {STEPS_NEED})"
    return [
        *lines,
        f"step time: {judged.step_s:.3g} s, {rate:,.0f} tokens/s (the planner's forecast)",
        f"whole run: {whole}",
    ]


def _room(planned: Planned) -> str:
    judged, device = planned.judged, planned.question.accelerator
    limit = format_bytes(judged.ledger.device_limit)
    known = fits(judged)
    if known is None:
        reason = "slurm.mem is not set" if planned.question.place.on_cpu else _GPU_UNKNOWN
        return f"whether it fits: n/a ({reason})"
    if not known:
        return f"does not fit: {why_too_big(judged)}"
    return f"fits the {limit} of {device.name}" if device else f"fits its share of {limit}"


def _why_no_times(seen: Preview, planned: Planned) -> str:
    named = planned.question.accelerator is not None or seen.request.gpus is None
    return _SPEEDS_UNKNOWN if named else _GPU_UNKNOWN
