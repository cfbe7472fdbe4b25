"""The planner's answer as JSON values: what `megatune plan --json` prints and plan.json holds."""

from dataclasses import asdict
from typing import Any

from megatune.plan.assess import Assessment, Question
from megatune.plan.families import why_never_cut
from megatune.plan.flops import model_flops
from megatune.plan.forecast import STEPS_NEED, Forecast
from megatune.plan.search import Found, pareto_front
from megatune.plan.snapshot import MOST_OF_AVAILABLE
from megatune.plan.step_time import Phases
from megatune.plan.validity import across_nodes
from megatune.units import format_bytes

SCHEMA = 1


def plan_answer(question: Question, chosen: Assessment, found: Found, ahead: Forecast) -> dict[str, Any]:
    """The whole answer; bytes, seconds and counts as plain numbers, None where something is not known."""
    return {
        "schema": SCHEMA,
        "model": _model(question),
        "devices": {
            "name": _device_name(question),
            "count": question.num_devices,
            "per_node": question.place.ranks_per_node,
            "links_measured_at": links.measured_at if (links := question.measured.links) else None,
            "calibrated_at": known.measured_at if (known := question.measured.calibration) else None,
        },
        "layout": chosen.layout.to_json(),
        "memory": _memory(chosen),
        "time": time_values(chosen),
        "forecast": asdict(ahead),
        "fits": fits(chosen),
        "notes": [*notes(question, chosen), *_about_steps(chosen, ahead)],
        "reasons": reasons(chosen, found),
        "rejected": [{"layout": one.layout, "reason": one.reason} for one in found.rejected_beside(chosen)],
        "skipped": found.skipped,
        "pareto": [_point(judged) for judged in pareto_front(found.fitting)],
    }


def fits(judged: Assessment) -> bool | None:
    """Whether everything has room; None when nobody knows the device's memory and nothing else is exceeded."""
    if judged.ledger.device_limit is None and judged.ledger.fits:
        return None
    return judged.ledger.fits


def notes(question: Question, chosen: Assessment) -> list[str]:
    """What else the reader must know of this layout."""
    layout, model = chosen.layout, question.work.model
    found = []
    if layout.global_sequences != question.global_sequences:
        found.append(
            f"this layout takes {layout.global_sequences} sequences a step, the run file {question.global_sequences}."
        )
    slow = across_nodes(question, layout.tensor_parallel)
    if slow is not None:
        found.append(f"{slow}: the search looks for no such layout.")
    found += _about_times(question)
    ledger = chosen.ledger
    if layout.offload != "none" and ledger.host and ledger.host_limit is None:
        found.append(
            f"whether a node has the {format_bytes(ledger.host_total)} of host memory that offload={layout.offload} "
            "needs is not known: give slurm.mem, as slurm.mem=512G."
        )
    if layout.offload_kind == "nvme":
        found += [
            f"{format_bytes(chosen.ledger.disk_bytes)} on the local disk of each node: {layout.offload}."
        ]
        if question.disk_bytes_per_s is None and question.rates() is not None:
            found.append("no times: give parallel.disk_gb_per_s, what that disk reads or writes.")
    positions = model.shape.max_positions
    if positions is not None and question.work.seq > positions:
        found.append(f"data.max_seq_length {question.work.seq} is beyond the model's {positions} positions.")
    if model.class_head is not None and not question.work.classes_are_known:
        found.append(
            f"data.labels is not given: the head is counted with {model.class_head.num_outputs} classes, the "
            f"fewest there can be; each more is {model.head_width} parameters."
        )
    never_cut = why_never_cut(model.config, model.shape)
    if never_cut:
        found.append(f"the model trains with tp_size 1: {never_cut}.")
    return [*found, *saves_notes(question, chosen)]


def _about_steps(chosen: Assessment, ahead: Forecast) -> list[str]:
    is_missing = ahead.num_steps is None and chosen.step_s is not None
    return [f"no whole-run figures: they need {STEPS_NEED}."] if is_missing else []


def saves_notes(question: Question, chosen: Assessment) -> list[str]:
    """What `checkpoint.async: auto` will come to, where that is known."""
    ledger = chosen.ledger
    if question.work.snapshots != "auto" or ledger.saves_behind is None:
        return []
    where = "a rank" if question.place.on_cpu else "a node"
    takes = f"a snapshot takes {format_bytes(ledger.snapshot_bytes)} of host memory {where}"
    if ledger.saves_behind:
        return [f"checkpoints will be written behind training: {takes}."]
    most = f"at most {MOST_OF_AVAILABLE:.0%} of what the plan leaves may be taken"
    return [f"checkpoints will be written while training waits: {takes}, and {most}."]


def _about_times(question: Question) -> list[str]:
    """What the times stand on, where that is not the table of speeds.py."""
    known = question.measured.calibration
    if question.rates() is None:
        return []
    if known is not None:
        return [
            f"times are calibrated with {known.num_runs} run(s) on {known.device} in {known.precision}, "
            f"{known.measured_at}; their steps were met within {known.error_after:.1%} (median)."
        ]
    if question.accelerator is None:
        return [
            "times are of matrix products and links alone, at the doctor's rates: a step takes longer. "
            "`megatune plan --calibrate RUN` learns from a run how much."
        ]
    return []


def flops_per_token(question: Question) -> dict[str, float]:
    """Forward and backward, in three conventions (see flops.py); `hardware` with recomputed blocks."""
    work = question.work
    flops = model_flops(work.model, tokens=1, squared_lengths=work.seq, gradient_checkpointing=True)
    return {
        "model": flops.model,
        "model_causal": flops.model_causal,
        "hardware_with_checkpointing": flops.hardware,
    }


def time_values(judged: Assessment) -> dict[str, Any]:
    """Seconds and rates of one step."""
    return {
        "step_seconds": judged.step_s,
        "tokens_per_second_per_device": judged.tokens_per_second_per_device,
        "mfu": judged.mfu,
        "mfu_causal": judged.mfu_causal,
        "hfu": judged.hfu,
        "by_phase": phase_values(judged.phases),
    }


def phase_values(phases: Phases | None) -> dict[str, float] | None:
    """Seconds by phase: `forward`, `backward`, `zero`, ..."""
    return None if phases is None else {k.removesuffix("_s"): v for k, v in asdict(phases).items()}


def reasons(chosen: Assessment, found: Found) -> list[str]:
    """Why the chosen layout, against the best of each other degree, offload and checkpointing."""
    if not found.fitting and not found.too_big:
        return []
    if chosen.step_s is None:
        return ["no times are known for this device or precision: the layout that gives up least was taken"]
    told = []
    for name in ("tensor_parallel", "zero_stage", "offload", "gradient_checkpointing", "micro_batch"):
        mine = getattr(chosen.layout, name)
        for value in dict.fromkeys(getattr(a.layout, name) for a in (*found.fitting, *found.too_big)):
            if value != mine:
                told.append(f"{name} {value} instead of {mine}: {_best_with(name, value, chosen, found)}")
    return told


def _best_with(name: str, value: object, chosen: Assessment, found: Found) -> str:
    rival = next((a for a in found.fitting if getattr(a.layout, name) == value), None)
    if rival is None:
        return "does not fit in any combination"
    speed = rival.beside(chosen)
    return f"{'its time is not known' if speed is None else f'{speed} at best'} ({rival.layout})"


def _device_name(question: Question) -> str | None:
    if question.accelerator is not None:
        return question.accelerator.name
    return "cpu" if question.place.on_cpu else None


def _model(question: Question) -> dict[str, Any]:
    model = question.work.model
    return {
        "model_type": model.shape.model_type,
        "num_params": model.num_params,
        "num_params_by_component": dict(model.by_component),
        "flops_per_token": flops_per_token(question),
    }


def _memory(chosen: Assessment) -> dict[str, Any]:
    ledger = chosen.ledger
    return {
        "device_bytes": ledger.device,
        "device_total_bytes": ledger.device_total,
        "device_limit_bytes": ledger.device_limit,
        "moment": ledger.moment,
        "host_bytes": ledger.host,
        "host_total_bytes": ledger.host_total,
        "disk_bytes": ledger.disk_bytes,
        "host_peak_bytes": ledger.host_peaks,
        "host_limit_bytes": ledger.host_limit,
    }


def _point(judged: Assessment) -> dict[str, Any]:
    return {
        "layout": judged.layout.to_json(),
        "device_total_bytes": judged.ledger.device_total,
        "host_total_bytes": judged.ledger.host_total,
        "step_seconds": judged.step_s,
        "tokens_per_second_per_device": judged.tokens_per_second_per_device,
    }
