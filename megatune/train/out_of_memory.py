"""Out of memory, explained: what was planned beside what is held, and what would fit.

Runs on the one rank that failed, while the others may wait in a collective: it calls none.
"""

import errno
import gc
import math
import traceback

import torch

from megatune.engine.accounting import HeldBytes
from megatune.errors import MemoryExhaustedError
from megatune.launch.planned_run import PlannedRun
from megatune.plan.assess import Assessment, Question
from megatune.plan.layout_keys import differing, overrides_for
from megatune.plan.search import search
from megatune.train.memory import MemoryMeter
from megatune.units import format_bytes

_WORDS = (
    "out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Cannot allocate memory",
    "std::bad_alloc",
)
_LESS = 0.9
"""What is proposed must need at least a tenth less by the same ledger, which was just shown to be off."""
_NUM_PROPOSED = 3


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is how torch, a library or Python says that there is no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def explained(
    error: BaseException, planned: PlannedRun | None, memory: MemoryMeter, rank: int
) -> MemoryExhaustedError:
    """The error to end with in the place of `error`. `planned`: None where the planner failed as well."""
    now = memory.usage().now  # before anything is let go
    traceback.clear_frames(error.__traceback__)  # their tensors are memory that this needs
    gc.collect()
    words = str(error).strip().splitlines() or [type(error).__name__]
    lines = [f"out of {memory.kind} memory on rank {rank} ({memory.phase}): {words[0]}"]
    lines += _held_lines(planned, memory, memory.held_bytes(), now)
    lines.append(f"longest micro-batch so far: {memory.longest}")
    lines += _proposals(planned, memory.kind)
    return MemoryExhaustedError("\n".join(lines))


def _held_lines(
    planned: PlannedRun | None, memory: MemoryMeter, held: HeldBytes | None, now: int | None
) -> list[str]:
    """The ledger against what is held at this moment."""
    judged = planned.judged if planned else None
    ledger = judged.ledger if judged else None
    framework = memory.framework
    known = {
        "weights": held.weights if held else None,
        "gradients": held.gradients if held else None,
        "optimizer": held.optimizer if held else None,
        "framework": framework,
    }
    if ledger is None:
        return [f"held at that moment: {format_bytes(now)}; the plan says nothing of this run"]
    rest = None
    if now is not None and held is not None and framework is not None:
        rest = max(0, now - held.total - framework)
    lines = ["", f"{'':32}{'planned':>12}{'held':>12}"]
    for name, size in ledger.device.items():
        if size:
            lines.append(f"{name.replace('_', ' '):32}{format_bytes(size):>12}{_cell(known.get(name)):>12}")
    lines.append(f"{'everything else, together':32}{'':>12}{_cell(rest):>12}")
    limit = format_bytes(ledger.device_limit)
    lines.append(f"{f'total, of {limit}':32}{format_bytes(ledger.device_total):>12}{_cell(now):>12}")
    return [*lines, ""]


def _cell(size: int | None) -> str:
    return "n/a" if size is None else format_bytes(size)


def _proposals(planned: PlannedRun | None, kind: str) -> list[str]:
    question, judged = (planned.question, planned.judged) if planned else (None, None)
    if question is None or judged is None:
        return [f"nothing is proposed: {planned.why_not if planned else 'the planner failed as well'}"]
    found = cheapest_changes(question, judged)
    if not found:
        return [
            "the planner knows no layout of the same batch on these devices that needs a tenth less. Use more devices, "
            "a smaller data.max_seq_length, or a policy with smaller buckets (ds_configs/zero3_low_memory.json)."
        ]
    lines = ["the planner says that these fit, the cheapest first:"]
    return lines + [
        f"  {' '.join(overrides_for(question.run, one.layout, judged.layout))}: {_price(one, judged, kind)}"
        for one in found
    ]


def cheapest_changes(question: Question, asked: Assessment) -> list[Assessment]:
    """Up to three layouts that need less than `asked`, in the order of what they cost in time.

    Of layouts that change the same settings the fastest only. Without times: the fewest changes first.
    """
    most = _LESS * asked.ledger.device_total
    smaller = [one for one in search(question).fitting if one.ledger.device_total <= most]
    kinds: dict[frozenset[str], Assessment] = {}
    for one in smaller:  # the fastest first
        kinds.setdefault(frozenset(differing(one.layout, asked.layout)), one)
    found = sorted(
        kinds.values(),
        key=lambda one: (
            math.inf if one.step_s is None else one.step_s,
            len(differing(one.layout, asked.layout)),
        ),
    )
    return found[:_NUM_PROPOSED]


def _price(one: Assessment, asked: Assessment, kind: str) -> str:
    before, after = format_bytes(asked.ledger.device_total), format_bytes(one.ledger.device_total)
    needs = f"{after} of {kind} memory a rank by the plan, instead of {before}"  # the digest looks for this
    speed = one.beside(asked)
    return needs if speed is None else f"{needs}, about {speed}"
