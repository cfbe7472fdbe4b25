"""What a run file leaves to the planner: the keys that say `auto`, gradient checkpointing unless it is given."""

from collections.abc import Collection
from dataclasses import dataclass

from megatune.config import Run
from megatune.errors import ModelError, PlanError
from megatune.plan.assess import Assessment, Question
from megatune.plan.layout_keys import CHECKPOINTING, shown, value_of, with_layout, with_values
from megatune.plan.search import Found, Space, search
from megatune.units import format_bytes


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A run without `auto`, and why it is as it is."""

    run: Run
    keys: tuple[str, ...]
    """The keys whose values were chosen."""
    why: str

    def __str__(self) -> str:
        return f"planned: {' '.join(f'{key}={shown(value_of(self.run, key))}' for key in self.keys)} ({self.why})"


def open_keys(run: Run, auto: Collection[str]) -> tuple[str, ...]:
    """What is to be chosen; `auto` as a loaded run tells it."""
    checkpointing = (CHECKPOINTING,) if run.model.gradient_checkpointing == "auto" else ()
    return (*auto, *checkpointing)


def fill_auto(run: Run, auto: Collection[str], question: Question | None, why_not: str = "") -> Choice | None:
    """`run` with the values of its open keys; None where nothing is open.

    `question`: what `run` asks on its machine; None where that cannot be planned, for the reason `why_not`:
    then, and where the device's memory is not known, every key has its documented default. Where nothing fits,
    the layout that lacks least is taken, and the run is left to try: the ledger may be wrong, memory is not.
    """
    keys = open_keys(run, auto)
    if not keys:
        return None
    if question is None:
        return _defaults(run, keys, f"not planned: {why_not}")
    if question.place.device_limit_bytes is None:
        return _defaults(run, keys, "how much memory this device has is not known")
    try:
        found = search(question, space_of(run, keys))
    except (ModelError, PlanError) as error:
        return _defaults(run, keys, f"not planned: {error}")
    taken = found.nearest
    if taken is None:
        reasons = "; ".join(map(str, found.impossible[:3]))
        return _defaults(run, keys, f"not planned, no layout keeps the batch: {reasons}")
    return Choice(run=with_layout(run, taken.layout, keys), keys=keys, why=_why(taken, found))


def _defaults(run: Run, keys: tuple[str, ...], why: str) -> Choice:
    values: dict[str, object] = {CHECKPOINTING: False} if CHECKPOINTING in keys else {}
    return Choice(run=with_values(run, values), keys=keys, why=why)


def space_of(run: Run, keys: Collection[str]) -> Space:
    """What a start may choose where `keys` are open: what the run file says itself stays."""
    recomputes = run.model.gradient_checkpointing
    return Space(
        tensor_parallel=None if "parallel.tp_size" in keys else run.parallel.tp_size,
        zero_stage=None if "parallel.zero_stage" in keys else run.parallel.zero_stage,
        offload=None if "parallel.offload" in keys else run.parallel.offload,
        micro_batch=(
            None if "train.per_device_train_batch_size" in keys else run.train.per_device_train_batch_size
        ),
        gradient_checkpointing=None if recomputes == "auto" else recomputes,
    )


def _why(taken: Assessment, found: Found) -> str:
    ledger, count = taken.ledger, len(found.fitting)
    needs = f"it needs {format_bytes(ledger.device_total)} a rank, of {format_bytes(ledger.device_limit)}"
    if not count:
        return f"{needs}: too much, and none of {len(found.too_big)} layouts needs less: it is tried"
    if taken.step_s is None:
        return f"{needs}; no times are known here, of {count} layout(s) that fit it gives up least"
    return f"{needs}, and {taken.step_s:.3g} s a step: the fastest of {count} layout(s) that fit"
