"""What the run file leaves to the planner: `model.gradient_checkpointing: auto`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from megatune.config import Run
from megatune.errors import ModelError, PlanError
from megatune.plan.assess import Question, assess
from megatune.plan.layout import Layout
from megatune.plan.question import Machine, layout_of, make_question
from megatune.units import format_bytes


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Whether blocks are computed again in backward, and why."""

    gradient_checkpointing: bool
    why: str

    def __str__(self) -> str:
        return f"gradient checkpointing: {'on' if self.gradient_checkpointing else 'off'} ({self.why})"


def fill_auto(
    run: Run, config: Mapping[str, Any], machine: Machine, policy: Mapping[str, Any] | None = None
) -> tuple[Run, Choice | None]:
    """`run` with `auto` replaced, and what was chosen; None where the run file says it itself.

    What cannot be planned trains without checkpointing, and the reason says so. Raises ConfigError for
    a layout that cannot be.
    """
    if run.model.gradient_checkpointing != "auto":
        return run, None
    layout = layout_of(run, machine.num_devices)
    try:
        choice = choose_checkpointing(make_question(run, config, machine, policy), layout)
    except (ModelError, PlanError) as error:
        choice = Choice(gradient_checkpointing=False, why=f"not planned: {error}")
    return with_checkpointing(run, choice.gradient_checkpointing), choice


def choose_checkpointing(question: Question, layout: Layout) -> Choice:
    """Off where `layout` fits without it, on where it fits only with it.

    Where neither fits it is on, and the run is left to try: the ledger may be wrong, memory is not.
    """
    without = assess(question, replace(layout, gradient_checkpointing=False)).ledger
    limit = format_bytes(without.device_limit)
    if without.device_limit is None and without.fits:
        return Choice(gradient_checkpointing=False, why="how much memory this device has is not known")
    if without.fits:
        needed = format_bytes(without.device_total)
        return Choice(
            gradient_checkpointing=False, why=f"the plan needs {needed} a rank, of {limit}, without it"
        )
    recomputed = assess(question, replace(layout, gradient_checkpointing=True)).ledger
    needed, less = format_bytes(without.device_total), format_bytes(recomputed.device_total)
    verdict = (
        f"{less} with it" if recomputed.fits else f"{less} with it, which is too much as well: it is tried"
    )
    return Choice(
        gradient_checkpointing=True, why=f"the plan needs {needed} a rank, of {limit}, without it; {verdict}"
    )


def with_checkpointing(run: Run, gradient_checkpointing: bool) -> Run:
    """A copy of `run` that says whether activations are recomputed."""
    model = run.model.model_copy(update={"gradient_checkpointing": gradient_checkpointing})
    return run.model_copy(update={"model": model})
