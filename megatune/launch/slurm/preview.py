"""What a job will train, as far as a login node can say: ranks, batch, and the planner's memory and times."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatune.config import LoadedRun, Run
from megatune.errors import ConfigError, ModelError, PlanError
from megatune.launch.slurm.quantities import parse_memory_bytes
from megatune.launch.slurm.request import JobRequest
from megatune.plan.answer import plan_answer
from megatune.plan.assess import Assessment, Question, assess
from megatune.plan.auto import Choice, fill_auto
from megatune.plan.ds_config import read_policy
from megatune.plan.forecast import forecast
from megatune.plan.hardware import accelerator_named
from megatune.plan.ledger import FRAMEWORK_BYTES
from megatune.plan.model_config import read_model_config
from megatune.plan.question import Machine, layout_of, make_question
from megatune.plan.rates import Measured
from megatune.plan.refusal import refuse_too_big
from megatune.plan.search import Found, search
from megatune.plan.validity import length_problem, refuse_untrainable

_HELD_ON_CPU = ("weights", "gradients", "optimizer", "shared_memory", "framework", "snapshot")
"""What a rank without a GPU holds at the very least; the rest of its ledger is of one moment."""

CountSteps = Callable[[int], int | None]
"""Steps of the whole run with so many sequences a step; None where nobody has counted them."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The run's own layout, judged by the planner."""

    question: Question
    judged: Assessment

    @property
    def num_params(self) -> int:
        return self.question.work.model.num_params


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One run of a job."""

    request: JobRequest
    tensor_parallel: int
    data_parallel: int
    micro_batch: int
    accumulation: int
    sequences_per_step: int
    tokens_per_step: int
    num_steps: int | None
    """None: as many as the epochs have, which nobody has counted yet."""
    choice: Choice | None
    """What the run file leaves open, as the job will fill it in on such machines."""
    planned: Planned | None
    why_not: str | None
    """Why the planner says nothing; None when it does."""

    @property
    def total_s(self) -> float | None:
        """Seconds that all steps take by the planner's forecast."""
        return self.left_s(0)

    def left_s(self, step: int) -> float | None:
        """Seconds that the steps after `step` take by the planner's forecast."""
        step_s = self.planned.judged.step_s if self.planned else None
        return None if step_s is None or self.num_steps is None else max(0, self.num_steps - step) * step_s

    @property
    def host_bytes_per_node(self) -> int:
        """What the ranks of one node hold in host memory; of an unknown model the libraries alone."""
        ranks = self.request.tasks_per_node
        if self.planned is None:
            return ranks * FRAMEWORK_BYTES
        ledger = self.planned.judged.ledger
        if self.request.gpus is None:
            return ranks * sum(ledger.device.get(name, 0) for name in _HELD_ON_CPU)
        return ledger.host_total

    def refusal(self) -> PlanError | None:
        """The error of a layout that the GPU or its node has no room for; None without a GPU that is known."""
        if self.planned is None or self.planned.question.accelerator is None:
            return None
        if self.planned.judged.ledger.fits:
            return None
        return refuse_too_big(self.planned.judged, search(self.planned.question))

    def as_object(self) -> dict[str, Any] | None:
        """The object that `megatune plan --json` prints, of this layout; None when the planner says nothing."""
        if self.planned is None:
            return None
        question, judged = self.planned.question, self.planned.judged
        ahead = forecast(
            question,
            judged,
            num_steps=self.num_steps,
            limit_s=self.request.time_limit_s,
            reserve_s=self.request.signal_delay_s,
            price_per_gpu_hour=None,
        )
        knows_limit = judged.ledger.device_limit is not None
        found = search(question) if knows_limit else Found()
        return plan_answer(question, judged, found, ahead)


def preview(
    loaded: LoadedRun,
    request: JobRequest,
    *,
    measured: Measured | None = None,
    count_steps: CountSteps,
) -> Preview:
    """What `loaded` will be on the nodes of `request`; what it leaves open is filled in as the job will do it.

    measured: by the doctor and by runs, where the job goes. count_steps: gives the steps of the whole run.
    Raises ConfigError for a layout that the job would refuse, as a degree the model cannot be cut to.
    """
    machine = machine_of(request, measured or Measured())
    question, why_not = _ask(loaded.run, machine)
    choice = fill_auto(loaded.run, loaded.auto, question, why_not or "")
    run = choice.run if choice else loaded.run
    layout = layout_of(run, request.num_ranks)
    if choice is not None:
        question, why_not = _ask(run, machine)
    planned = None
    if question is not None:
        refuse_untrainable(question, layout)
        too_long = length_problem(run, question.work.model.shape)
        if too_long:
            raise ConfigError([too_long])
        planned = Planned(question=question, judged=assess(question, layout))
    sequences = layout.global_sequences
    return Preview(
        request=request,
        tensor_parallel=layout.tensor_parallel,
        data_parallel=layout.data_parallel,
        micro_batch=layout.micro_batch,
        accumulation=layout.accumulation,
        sequences_per_step=sequences,
        tokens_per_step=sequences * run.data.max_seq_length,
        num_steps=count_steps(sequences),
        choice=choice,
        planned=planned,
        why_not=why_not,
    )


def _ask(run: Run, machine: Machine) -> tuple[Question | None, str | None]:
    try:
        return make_question(run, read_model_config(run), machine, read_policy(run.deepspeed)), None
    except (ModelError, PlanError, ConfigError) as error:
        return None, str(error)  # training it may still work: only the planner does not know it


def machine_of(request: JobRequest, measured: Measured) -> Machine:
    """The nodes of `request` as the planner sees them."""
    gpus = request.gpus
    return Machine(
        nodes=request.nodes,
        ranks_per_node=request.tasks_per_node,
        accelerator=accelerator_named(gpus.name) if gpus and gpus.name else None,
        host_memory_bytes=parse_memory_bytes(request.mem) if request.mem else None,
        measured=measured,
        on_cpu=gpus is None,
        needs_limit=False,
    )
