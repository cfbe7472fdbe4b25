"""From a run file and a machine to the planner's question."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from megatune.config import Run, resolve_batch
from megatune.errors import ConfigError, PlanError
from megatune.plan.assess import Question
from megatune.plan.buckets import buckets_of
from megatune.plan.hardware import Accelerator
from megatune.plan.layout import Layout
from megatune.plan.ledger import FRAMEWORK_BYTES, Place, Workload
from megatune.plan.practice import practice_of
from megatune.plan.rates import Measured
from megatune.plan.states import optimizer_bytes
from megatune.plan.weights import ClassHead, ModelWeights, count_model


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the run gets. accelerator None: no GPUs, a rank is a share of the host."""

    nodes: int
    ranks_per_node: int
    accelerator: Accelerator | None
    device_memory_bytes: int | None = None
    """Where it is not the hardware table's: a measured one, or a CPU rank's share of the host."""
    host_memory_bytes: int | None = None
    """Of one node; None when nobody knows."""
    measured: Measured = field(default_factory=Measured)
    on_cpu: bool | None = None
    """None: where no accelerator is named. False without one: GPUs that the hardware table does not have."""
    needs_limit: bool = True
    """False: memory is counted also where nobody knows how much there is."""

    @property
    def num_devices(self) -> int:
        return self.nodes * self.ranks_per_node

    def place(self) -> Place:
        """Limits for the ledger. Raises PlanError when a device's memory is needed and not known."""
        on_cpu = self.accelerator is None if self.on_cpu is None else self.on_cpu
        table = self.accelerator.memory_bytes if self.accelerator else None
        limit = self.device_memory_bytes if self.device_memory_bytes is not None else table
        if limit is None and on_cpu and self.host_memory_bytes is not None:
            limit = self.host_memory_bytes // self.ranks_per_node
        if limit is None and self.needs_limit:
            raise PlanError(
                "how much memory a rank may use is not known: without GPUs it is a share of the node's. Give "
                "slurm.mem=256G, or plan on the machine itself."
            )
        known = self.measured.calibration
        return Place(
            ranks_per_node=self.ranks_per_node,
            device_limit_bytes=limit,
            host_limit_bytes=self.host_memory_bytes,
            on_cpu=on_cpu,
            framework_bytes=(known.framework_bytes if known else None) or FRAMEWORK_BYTES,
        )


def make_question(
    run: Run,
    config: Mapping[str, Any],
    machine: Machine,
    policy: Mapping[str, Any],
    *,
    num_classes: int | None = None,
) -> Question:
    """The question that `run` asks about the model of `config` (its config.json).

    num_classes: outputs of a classifier head, where the rows have told them; else see `class_head_of`.
    The global batch is the run file's; where it gives none, that of the run file's own layout.
    Raises ModelError, PlanError and ConfigError for what cannot be planned.
    """
    model = count_model(config, class_head_of(run, num_classes))
    work = Workload(
        model=model,
        seq=run.data.max_seq_length,
        precision=run.precision,
        optimizer_bytes=optimizer_bytes(run.train.optimizer, momentum=run.train.momentum),
        in_one_group=run.train.optimizer == "adagrad",
        kernel=_kernel(run, model),
        packed=run.packs,
        buckets=replace(buckets_of(policy, model), keep_gathered=run.parallel.keep_gathered),
        chunked_loss=run.train.chunked_loss is not False,
        draws_weights=run.model.initialize == "random",
        snapshots=run.checkpoint.asynchronous if run.checkpoint.save_steps else False,
        classes_are_known=run.model.head == "lm"
        or num_classes is not None
        or bool(run.data.labels)
        or run.data.task == "qa",
    )
    return Question(
        run=run,
        policy=policy,
        work=work,
        place=machine.place(),
        num_devices=machine.num_devices,
        global_sequences=_global_sequences(run, machine.num_devices),
        accelerator=machine.accelerator,
        practice=practice_of(run, model, gradient_checkpointing=False, policy=policy),
        measured=machine.measured,
        disk_bytes_per_s=run.parallel.disk_gb_per_s and run.parallel.disk_gb_per_s * 1e9,
    )


def class_head_of(run: Run, num_classes: int | None = None) -> ClassHead | None:
    """The head of the run; None for the vocabulary's.

    Where neither `num_classes` nor data.labels tells the classes, the fewest that there can be are counted: the
    rows are not read for a plan, and a class is one row of the head.
    """
    if run.model.head == "lm":
        return None
    if num_classes is None:
        num_classes = _fewest_classes(run)
    return ClassHead(num_outputs=num_classes, has_bias=run.data.task != "classification")


def _fewest_classes(run: Run) -> int:
    labels = len(run.data.labels)
    if (
        run.data.task == "ner"
    ):  # outside, and each label as the begin and inside (and end, and single) of an entity
        return 1 + max(1, labels) * (4 if run.data.tag_scheme == "bioes" else 2)
    return max(2, labels) if run.data.task == "classification" else 2


def layout_of(run: Run, num_devices: int) -> Layout:
    """The layout that the run file itself describes; `auto` checkpointing counts as off.

    Raises ConfigError when tp_size does not divide the devices or the batch does not come out whole.
    """
    degree = run.parallel.tp_size
    if num_devices % degree:
        raise ConfigError([f"parallel.tp_size = {degree} does not divide {num_devices} devices."])
    batch = resolve_batch(run, num_devices // degree)
    return Layout(
        tensor_parallel=degree,
        data_parallel=num_devices // degree,
        micro_batch=batch.micro,
        accumulation=batch.accumulation,
        gradient_checkpointing=run.model.gradient_checkpointing is True,
        offload=run.parallel.offload,
        zero_stage=run.parallel.zero_stage,
    )


def _kernel(run: Run, model: ModelWeights) -> str:
    eager = run.model.attn_implementation == "eager" or not model.kind.has_sdpa
    return "eager" if eager else "sdpa"


def _global_sequences(run: Run, num_devices: int) -> int:
    train = run.train
    if train.global_batch_size is not None:
        return train.global_batch_size
    if train.tokens_per_step is not None:
        return train.tokens_per_step // run.data.max_seq_length
    return layout_of(run, num_devices).global_sequences
