"""All layouts of a question: which fit, which is fastest, and why each of the others was not taken."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from megatune.plan.assess import Assessment, Question, assess
from megatune.plan.layout import OFFLOAD_KINDS, Layout, Offload
from megatune.plan.layout_keys import shown
from megatune.plan.validity import across_nodes, family_problem, problems_of
from megatune.units import format_bytes, format_ranges

_OFFLOADS: tuple[Offload, ...] = ("none", "optimizer", "all")
"""A disk is looked at where the run file names its folder."""
_STAGES = (1, 2, 3)
"""Stage 0 holds more than stage 1 and sends as much: it is judged where it is asked for."""
_WIDEST_DEGREE = 64
"""Tensor-parallel degrees above this are not looked at: no node has so many devices."""


@dataclass(frozen=True)
class Rejected:
    """A layout, or what several have in common, and why it was not taken."""

    layout: dict[str, Any]
    reason: str
    batch_factor: int | None = None
    """Where the global batch is the reason: what it must be a multiple of."""

    @property
    def words(self) -> str:
        """The layout as `--layout` and messages have it: `tp=1 dp=8`."""
        return " ".join(f"{key}={shown(value)}" for key, value in self.layout.items()) or "every layout"

    @property
    def is_of_degree(self) -> bool:
        """A tensor-parallel degree cannot be had, whatever the rest of the layout."""
        return bool(self.layout) and self.layout.keys() <= {"tp", "dp"}

    def __str__(self) -> str:
        return f"{self.words}: {self.reason}"


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

    fitting: Sequence[Assessment] = ()
    too_big: Sequence[Assessment] = ()
    """Those that lack least first."""
    impossible: Sequence[Rejected] = ()
    """What no start would train, or no search looks for."""
    skipped: str | None = None
    """The degrees that were not looked at, with the reason; None without any."""

    @property
    def best(self) -> Assessment | None:
        return self.fitting[0] if self.fitting else None

    @property
    def nearest(self) -> Assessment | None:
        """The best; where nothing fits, the one that lacks least; None without a layout."""
        return self.best or next(iter(self.too_big), None)

    def rejected_beside(self, taken: Assessment | None) -> list[Rejected]:
        """Why each layout but `taken` was not."""
        others = [a for a in (*self.too_big, *self.fitting) if taken is None or a.layout != taken.layout]
        judged = [Rejected(a.layout.to_json(), _why_not(a, taken)) for a in others]
        degrees = [one for one in self.impossible if one.is_of_degree or not one.layout]
        return [*degrees, *judged, *(one for one in self.impossible if one not in degrees)]


def search(question: Question, space: Space | None = None) -> Found:
    """Judge every layout of `space` (all, without one) that keeps the global batch and that a start would train."""
    space = space or Space()
    impossible: list[Rejected] = []
    degrees = list(_degrees(question, space, impossible))
    layouts = [layout for degree in degrees for layout in _layouts(question, degree, space)]
    problems = {layout: problems_of(question, layout) for layout in layouts}
    judged = [assess(question, layout) for layout in layouts if not problems[layout]]
    impossible += _in_common(problems)
    fitting = sorted((a for a in judged if a.ledger.fits), key=order_of)
    too_big = sorted((a for a in judged if not a.ledger.fits), key=lambda a: _overrun(a))
    skipped = _skipped(question.num_devices) if space.tensor_parallel is None else None
    return Found(fitting=fitting, too_big=too_big, impossible=impossible, skipped=skipped)


def pareto_front(fitting: Sequence[Assessment]) -> list[Assessment]:
    """Those that no other beats in both memory and speed, the fastest first. Without times: by memory alone."""
    front: list[Assessment] = []
    for candidate in sorted(fitting, key=order_of):
        if not front or candidate.ledger.device_total < front[-1].ledger.device_total:
            front.append(candidate)
    timed = [one for one in front if one.step_s is not None]
    return timed or front[-1:]


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


def order_of(judged: Assessment) -> tuple[float, int, bool, int, int, int]:
    """Fastest first. Without times: least offload, no recomputation, smallest degree, least divided, largest
    micro-batch."""
    layout = judged.layout
    return (
        math.inf if judged.step_s is None else judged.step_s,
        OFFLOAD_KINDS.index(layout.offload_kind),
        layout.gradient_checkpointing,
        layout.tensor_parallel,
        layout.zero_stage,
        -layout.micro_batch,
    )


def _degrees(question: Question, space: Space, impossible: list[Rejected]) -> Iterator[int]:
    """Degrees with which the global batch can be kept; the others go to `impossible`."""
    asked, num_devices = space.tensor_parallel, question.num_devices
    for degree in range(1, min(num_devices, _WIDEST_DEGREE) + 1) if asked is None else [asked]:
        if num_devices % degree:
            if asked is not None:
                impossible.append(Rejected({"tp": degree}, f"it does not divide {num_devices} devices"))
            continue
        data, factor, model = num_devices // degree, None, question.work.model
        one_pass = data * (space.micro_batch or 1)
        # One that the run file asks for is trained, wherever its groups lie.
        reason = across_nodes(question, degree) if asked is None else None
        reason = reason or family_problem(model.config, model.shape, degree)
        if reason is None and question.global_sequences % one_pass:
            factor = one_pass
            micro = f" in micro-batches of {space.micro_batch}" if one_pass > data else ""
            reason = (
                f"the global batch of {question.global_sequences} sequences does not divide over {data} "
                f"data-parallel ranks{micro}"
            )
        if reason is None:
            yield degree
        else:
            impossible.append(Rejected({"tp": degree, "dp": data}, reason, factor))


def _skipped(num_devices: int) -> str | None:
    """The degrees that `_degrees` passes over without a word, in one line."""
    odd = [degree for degree in range(2, min(num_devices, _WIDEST_DEGREE) + 1) if num_devices % degree]
    parts = [f"{format_ranges(odd)} (do not divide {num_devices} devices)"] if odd else []
    if num_devices > _WIDEST_DEGREE:
        parts.append(f"above {_WIDEST_DEGREE} (no node has so many devices)")
    return f"tensor-parallel degrees not looked at: {'; '.join(parts)}." if parts else None


def _layouts(question: Question, degree: int, space: Space) -> Iterator[Layout]:
    data = question.num_devices // degree
    sequences = question.global_sequences // data
    recomputes = (False, True) if space.gradient_checkpointing is None else (space.gradient_checkpointing,)
    micros = [n for n in range(1, sequences + 1) if sequences % n == 0 and space.micro_batch in (None, n)]
    choices = product(micros, _offloads(question, space), _stages(question, space), recomputes)
    for micro, offload, stage, checkpointing in choices:
        yield Layout(
            tensor_parallel=degree,
            data_parallel=data,
            micro_batch=micro,
            accumulation=sequences // micro,
            gradient_checkpointing=checkpointing,
            offload=offload,
            zero_stage=stage,
        )


def _offloads(question: Question, space: Space) -> Sequence[Offload]:
    if space.offload is not None:
        return (space.offload,)
    usual: Sequence[Offload] = ("none",) if question.place.on_cpu else _OFFLOADS
    return tuple(dict.fromkeys((*usual, question.run.parallel.offload)))


def _stages(question: Question, space: Space) -> Sequence[int]:
    if space.zero_stage is not None:
        return (space.zero_stage,)
    return tuple(sorted({*_STAGES, question.run.parallel.zero_stage}))


def _in_common(problems: Mapping[Layout, Sequence[str]]) -> Iterator[Rejected]:
    """Layouts that a start would refuse for the same reasons, told once by the settings that they share."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for layout, found in problems.items():
        if found:
            groups.setdefault(" ".join(found), []).append(layout.to_json())
    for reason, alike in groups.items():
        shared = {key: value for key, value in alike[0].items() if all(one[key] == value for one in alike)}
        yield Rejected(shared, reason)


def _overrun(judged: Assessment) -> int:
    return max(judged.ledger.missing_bytes, judged.ledger.host_missing_bytes)


def _why_not(judged: Assessment, taken: Assessment | None) -> str:
    if not judged.ledger.fits:
        return why_too_big(judged)
    fits = f"fits ({format_bytes(judged.ledger.device_total)})"
    if taken is None or (judged.step_s is None and taken.step_s is None):
        return f"{fits}; more of it is recomputed, offloaded or divided"
    speed = judged.beside(taken)
    if speed is None or judged.step_s is None or taken.step_s is None:
        return f"{fits}; its time beside the other's is not known"
    if speed.endswith("faster"):
        return f"{fits} and is {speed}, but it is not what was asked for"
    if judged.layout.global_sequences != taken.layout.global_sequences:
        return f"{fits}, but is {speed}"
    return f"{fits}, but a step takes {judged.step_s:.3g} s instead of {taken.step_s:.3g} s"
