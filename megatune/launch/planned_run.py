"""A run on the machine where it starts: what it leaves to the planner is filled in, and what it should need is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatune.config import LoadedRun, Run
from megatune.errors import ModelError, PlanError
from megatune.launch.devices import count_gpus, gpu_kind, host_memory_bytes
from megatune.launch.measurements import measured_for
from megatune.plan.answer import phase_values, plan_answer
from megatune.plan.assess import Assessment, Question, assess
from megatune.plan.auto import Choice, fill_auto
from megatune.plan.ds_config import read_policy
from megatune.plan.forecast import forecast
from megatune.plan.hardware import accelerator_named, find_accelerator
from megatune.plan.layout_keys import value_of
from megatune.plan.question import Machine, layout_of, make_question
from megatune.plan.search import Found
from megatune.report.records import PlanRecord


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """What a start trains, and what the planner expects of it."""

    loaded: LoadedRun
    """Without anything left open."""
    choice: Choice | None
    """What was filled in; None where the run file says everything."""
    question: Question | None
    judged: Assessment | None
    """The layout that runs."""
    why_not: str
    """Why the planner says nothing of it; "" when it does."""

    @property
    def chosen(self) -> dict[str, object]:
        """Keys of the run file that were left open -> the values that were filled in."""
        return {key: value_of(self.loaded.run, key) for key in self.choice.keys} if self.choice else {}

    def record(self) -> PlanRecord:
        """The estimate that the report puts beside what was measured."""
        if self.judged is None:
            return PlanRecord(chosen=self.chosen, why=self.why_not)
        return PlanRecord(
            layout=self.judged.layout.to_json(),
            device_bytes=self.judged.ledger.device,
            host_bytes=self.judged.ledger.host,
            disk_bytes=self.judged.ledger.disk_bytes,
            device_limit_bytes=self.judged.ledger.device_limit,
            step_seconds=self.judged.step_s,
            seconds_by_phase=phase_values(self.judged.phases),
            chosen=self.chosen,
            why=self.choice.why if self.choice else None,
        )

    def as_object(self, num_steps: int) -> dict[str, Any]:
        """What plan.json holds of a run of so many steps."""
        planned = {"chosen": self.chosen, "why": self.choice.why if self.choice else None}
        if self.question is None or self.judged is None:
            return {"schema": None, "planned": planned, "why_not": self.why_not}
        ahead = forecast(
            self.question,
            self.judged,
            num_steps=num_steps,
            limit_s=None,
            reserve_s=0,
            price_per_gpu_hour=None,
        )
        nothing = Found()
        return {**plan_answer(self.question, self.judged, nothing, ahead), "planned": planned}


def plan_start(
    loaded: LoadedRun,
    config: Mapping[str, Any],
    *,
    num_nodes: int,
    ranks_per_node: int,
    num_classes: int | None = None,
) -> PlannedRun:
    """Fill what `loaded` leaves open in for this machine, and judge the result.

    config: the model's config.json. num_classes: of a classifier head, once the rows have told them. Where the
    planner does not know the model or the device, the keys have their documented defaults. Raises ConfigError
    for a batch that does not come out whole.
    """
    run = loaded.run
    machine = machine_here(run, num_nodes=num_nodes, ranks_per_node=ranks_per_node)
    question, why_not = _ask(run, config, machine, num_classes)
    choice = fill_auto(run, loaded.auto, question, why_not)
    if choice is not None:
        loaded = loaded.planned(choice.run, choice.keys)
        question, why_not = _ask(choice.run, config, machine, num_classes)
    judged = None
    if question is not None:
        judged = assess(question, layout_of(loaded.run, machine.num_devices))
        loaded = _settle_saves(loaded, judged)
    return PlannedRun(loaded=loaded, choice=choice, question=question, judged=judged, why_not=why_not)


def _settle_saves(loaded: LoadedRun, judged: Assessment) -> LoadedRun:
    """`checkpoint.async: auto` is false where the ledger has no room; else the memory left at the first save decides.

    The ledger knows what that save cannot see: what each later step takes again beside the snapshot.
    """
    checkpoint = loaded.run.checkpoint
    if checkpoint.asynchronous != "auto" or judged.ledger.saves_behind is not False:
        return loaded
    if not checkpoint.save_steps:
        return loaded
    settled = checkpoint.model_copy(update={"asynchronous": False})
    return loaded.planned(loaded.run.model_copy(update={"checkpoint": settled}), ["checkpoint.async"])


def machine_here(run: Run, *, num_nodes: int, ranks_per_node: int, gpu: str | None = None) -> Machine:
    """`num_nodes` machines like this one.

    gpu: the name of its GPUs in the hardware table, where the driver's is not in it, or cpu. Raises PlanError for
    another name. The memory is the board's own, unless the table knows the board by another name than that.
    """
    on_cpu = gpu == "cpu" or count_gpus() == 0
    kind = None if on_cpu else gpu_kind()
    own = find_accelerator(kind[0]) if kind else None
    accelerator = own if gpu is None else None if gpu == "cpu" else accelerator_named(gpu)
    device = "cpu" if on_cpu else accelerator.name if accelerator else None
    return Machine(
        nodes=num_nodes,
        ranks_per_node=ranks_per_node,
        accelerator=accelerator,
        device_memory_bytes=kind[1] if kind and own in (None, accelerator) else None,
        host_memory_bytes=host_memory_bytes(),
        measured=measured_for(run, device=device),
        on_cpu=on_cpu,
        needs_limit=False,
    )


def _ask(
    run: Run, config: Mapping[str, Any], machine: Machine, num_classes: int | None
) -> tuple[Question | None, str]:
    try:
        policy = read_policy(run.deepspeed)
        return make_question(run, config, machine, policy, num_classes=num_classes), ""
    except (ModelError, PlanError) as error:
        return None, str(error)
