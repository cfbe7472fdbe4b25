"""All layouts of a question: which fit, which is fastest, and why each of the others was not taken."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from megatune.errors import ModelError, PlanError
from megatune.plan.assess import Assessment, Question, assess
from megatune.plan.families import find_family
from megatune.plan.layout import OFFLOAD_KINDS, Layout, Offload
from megatune.units import format_bytes

_OFFLOADS: tuple[Offload, ...] = ("none", "optimizer", "all")
"""A disk is looked at where the run file names its folder."""
_STAGES = (1, 2, 3)
"""Stage 0 holds more than stage 1 and sends as much: it is judged where it is asked for."""
_LEAST_STAGE = {"none": 0, "optimizer": 1, "all": 3, "nvme": 3}
_WIDEST_DEGREE = 64
"""Tensor-parallel degrees above this are not looked at: no node has so many devices."""


@dataclass(frozen=True)
class Rejected:
    """A layout, or what several have in common, and why it was not taken."""

    layout: dict[str, Any]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a search may choose; None where it may choose anything."""

    tensor_parallel: int | None = None
    micro_batch: int | None = None
    zero_stage: int | None = None
    offload: Offload | None = None
    gradient_checkpointing: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found, the fastest first."""

    fitting: Sequence[Assessment]
    too_big: Sequence[Assessment]
    rejected: Sequence[Rejected]

    @property
    def best(self) -> Assessment | None:
        return self.fitting[0] if self.fitting else None


def search(question: Question, space: Space | None = None) -> Found:
    """Judge every layout of `space` (all, without one) that keeps the global batch."""
    space = space or Space()
    rejected: list[Rejected] = []
    judged: list[Assessment] = []
    for degree in _degrees(question, space, rejected):
        judged += [assess(question, layout) for layout in _layouts(question, degree, space)]
    fitting = sorted((a for a in judged if a.ledger.fits), key=_order)
    too_big = sorted((a for a in judged if not a.ledger.fits), key=lambda a: _overrun(a))
    rejected += [Rejected(a.layout.to_json(), why_too_big(a)) for a in too_big]
    if fitting:
        rejected += [Rejected(a.layout.to_json(), _why_slower(a, fitting[0])) for a in fitting[1:]]
    return Found(fitting=fitting, too_big=too_big, rejected=rejected)


def pareto_front(fitting: Sequence[Assessment]) -> list[Assessment]:
    """Those that no other beats in both memory and speed, the fastest first. Without times: by memory alone."""
    front: list[Assessment] = []
    for candidate in sorted(fitting, key=_order):
        if not front or candidate.ledger.device_total < front[-1].ledger.device_total:
            front.append(candidate)
    return front if fitting and fitting[0].step_s is not None else front[-1:]


def refuse_too_big(asked: Assessment, found: Found) -> PlanError:
    """The error for a layout that does not fit, with the three nearest that do."""
    nearest = sorted(found.fitting, key=lambda a: (_distance(a.layout, asked.layout), *_order(a)))[:3]
    lines = [f"{asked.layout}: {why_too_big(asked)}."]
    if nearest:
        lines.append("Nearest layouts that fit:")
        lines += [f"  {a.layout}: {format_bytes(a.ledger.device_total)}{_versus(a, asked)}" for a in nearest]
    else:
        lines.append(_none_fits(found))
    return PlanError("\n".join(lines))


def refuse_all(question: Question, found: Found) -> PlanError:
    """The error when no layout fits, with the three that are nearest to fitting."""
    lines = [f"no layout of {question.num_devices} device(s) fits."]
    if found.too_big:
        lines.append("Nearest to fitting:")
        lines += [f"  {a.layout}: {why_too_big(a)}" for a in found.too_big[:3]]
    else:
        lines += [f"  {one.layout}: {one.reason}" for one in found.rejected[:3]]
    lines.append(_none_fits(found))
    return PlanError("\n".join(lines))


def why_too_big(asked: Assessment) -> str:
    """By how much a layout does not fit, and what takes the most."""
    ledger = asked.ledger
    if ledger.missing_bytes > 0:
        most = sorted(ledger.device.items(), key=lambda item: -item[1])[:2]
        named = " and ".join(f"{name.replace('_', ' ')} {format_bytes(size)}" for name, size in most)
        return (
            f"needs {format_bytes(ledger.device_total)} a device, {format_bytes(ledger.missing_bytes)} more than the "
            f"{format_bytes(ledger.device_limit)} there are; most of it is {named}"
        )
    return (
        f"needs {format_bytes(ledger.host_total)} of host memory a node, {format_bytes(ledger.host_missing_bytes)} "
        f"more than the {format_bytes(ledger.host_limit)} there are"
    )


def _degrees(question: Question, space: Space, rejected: list[Rejected]) -> Iterator[int]:
    model, per_node = question.work.model, question.place.ranks_per_node
    for degree in range(1, min(question.num_devices, _WIDEST_DEGREE) + 1):
        if question.num_devices % degree or space.tensor_parallel not in (None, degree):
            continue
        reason = None
        if degree > 1 and per_node % degree:
            reason = (
                f"a tensor-parallel group would lie on several nodes of {per_node}, over their slow links"
            )
        else:
            try:
                find_family(model.config, model.shape, degree)
            except ModelError as error:
                reason = str(error)
        data = question.num_devices // degree
        if reason is None and question.global_sequences % data:
            reason = (
                f"the global batch of {question.global_sequences} sequences does not divide over {data} "
                "data-parallel ranks"
            )
        if reason is None:
            yield degree
        else:
            rejected.append(Rejected({"tp": degree, "dp": data}, reason))


def _layouts(question: Question, degree: int, space: Space) -> Iterator[Layout]:
    data = question.num_devices // degree
    sequences = question.global_sequences // data
    offloads: Sequence[Offload] = _OFFLOADS
    if space.offload is not None or question.place.on_cpu:
        offloads = (space.offload or "none",)
    stages = _STAGES if space.zero_stage is None else (space.zero_stage,)
    recomputes = (False, True) if space.gradient_checkpointing is None else (space.gradient_checkpointing,)
    micros = [n for n in range(1, sequences + 1) if sequences % n == 0 and space.micro_batch in (None, n)]
    for micro, offload, stage, checkpointing in product(micros, offloads, stages, recomputes):
        if stage >= _LEAST_STAGE[offload.partition(":")[0]]:
            yield Layout(
                tensor_parallel=degree,
                data_parallel=data,
                micro_batch=micro,
                accumulation=sequences // micro,
                gradient_checkpointing=checkpointing,
                offload=offload,
                zero_stage=stage,
            )


def _order(judged: Assessment) -> tuple[float, int, bool, int, int, int]:
    """Fastest first. Without times: least offload, no recomputation, smallest degree, least divided, largest
    micro-batch."""
    layout = judged.layout
    return (
        judged.step_s or 0.0,
        OFFLOAD_KINDS.index(layout.offload_kind),
        layout.gradient_checkpointing,
        layout.tensor_parallel,
        layout.zero_stage,
        -layout.micro_batch,
    )


def _overrun(judged: Assessment) -> int:
    return max(judged.ledger.missing_bytes, judged.ledger.host_missing_bytes)


def _distance(one: Layout, other: Layout) -> int:
    """How many settings differ."""
    mine, theirs = one.to_json(), other.to_json()
    return sum(mine[key] != theirs[key] for key in mine if key not in ("dp", "accumulation"))


def _why_slower(judged: Assessment, best: Assessment) -> str:
    if judged.step_s is None or best.step_s is None:
        return f"fits ({format_bytes(judged.ledger.device_total)}); more of it is recomputed, offloaded or divided"
    return (
        f"fits ({format_bytes(judged.ledger.device_total)}), but a step takes {judged.step_s:.3g} s instead of "
        f"{best.step_s:.3g} s"
    )


def _versus(judged: Assessment, asked: Assessment) -> str:
    if judged.step_s is None or asked.step_s is None:
        return ""
    change = judged.step_s / asked.step_s - 1
    return f", about {abs(change):.0%} {'slower' if change >= 0 else 'faster'} than asked"


def _none_fits(found: Found) -> str:
    if not found.too_big:
        return "Change the number of devices, train.global_batch_size or parallel.tp_size."
    return (
        "Use more devices, devices with more memory, or a smaller data.max_seq_length; a policy with smaller buckets "
        "(ds_configs/zero3_low_memory.json) helps where gradient buckets or gathered weights are the most."
    )
