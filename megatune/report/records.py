"""The lines of metrics.jsonl, as records. One line is one JSON object; unknown is null.

Every line has `event`, `schema` and `time` (ISO 8601, UTC). A number that JSON cannot hold (NaN,
infinity) becomes null and its name is put into the list `nonfinite`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, ClassVar

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One start of a run: what is trained, and how it is laid out."""

    event: ClassVar[str] = "run"
    model: str
    num_params: int | None = None
    world_size: int | None = None
    data_parallel: int | None = None
    tensor_parallel: int | None = None
    zero_stage: int | None = None
    precision: str | None = None
    device: str | None = None
    """The device's name, for instance `NVIDIA H100 80GB HBM3` or `cpu`."""
    total_steps: int | None = None
    sequences_per_step: int | None = None
    max_seq_length: int | None = None
    labels: tuple[str, ...] = ()
    """What it learns to tell apart, where its task has labels: those the run names, or else those of its rows."""
    launcher: str | None = None
    num_nodes: int | None = None
    hosts: tuple[str, ...] = ()
    """Each node's name, in the order of its first rank."""
    job_id: str | None = None
    """The Slurm job, as squeue takes it; None outside one."""
    restart_count: int | None = None
    """How often Slurm has queued the job again: 0 in its first run, None outside a job."""
    startup_seconds: float | None = None
    """From the first rank's first line of training code to the start of loading; imports are not in it."""
    load_seconds: float | None = None
    """To build model and engine and to load the pretrained weights."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Anything else worth keeping: asserted backends, formula names, versions."""


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """What the planner expected of a start. All None and empty where it could not say."""

    event: ClassVar[str] = "plan"
    layout: Mapping[str, Any] = field(default_factory=dict)
    """Under the names of plan.json."""
    device_bytes: Mapping[str, int] = field(default_factory=dict)
    """Of one rank, by component; on machines without GPUs its host memory."""
    host_bytes: Mapping[str, int] = field(default_factory=dict)
    """Of one node beside GPUs."""
    disk_bytes: int = 0
    """Of one node's local disk."""
    device_limit_bytes: int | None = None
    step_seconds: float | None = None
    seconds_by_phase: Mapping[str, float] | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """The keys that the run file left open, with the values they were given."""
    why: str | None = None
    """Of what was chosen, or why nothing could be said."""


@dataclass(frozen=True, kw_only=True)
class MemoryRecord:
    """What one rank, the first, really held."""

    event: ClassVar[str] = "memory"
    step: int
    weights: int
    """Bytes of the engine's own tensors, counted one by one; see `engine/accounting.py` for each."""
    gradients: int
    optimizer: int
    on_host: bool
    """The three are in host memory, beside a GPU or as all there is."""
    framework: int | None
    """Private memory of the process before it held a model; on a GPU what the driver has beside the allocator."""
    after_forward: int | None
    """What the forward of a micro-batch added to what was held before it."""
    peak: int | None
    """The most that was held at a time, framework included."""
    shared_memory: int | None
    """Beside that: this rank's part of what the ranks of its host share, after the step. None on a GPU."""
    fragmentation: int | None
    """On a GPU: reserved by the allocator at the peak and not allocated."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step, over all ranks."""

    event: ClassVar[str] = "step"
    step: int
    """Steps done, this one included: the first step is 1."""
    epoch: float
    loss: float | None
    """Mean cross-entropy in nats over the target tokens of the step; None without any."""
    grad_norm: float | None
    """Global norm before clipping."""
    learning_rate: float
    target_tokens: int
    """Tokens that the loss is taken over."""
    tokens: int
    """All tokens that went through the model, padding not counted."""
    step_seconds: float
    tokens_per_second: float
    tokens_per_second_per_device: float
    model_flops: float | None
    """Floating-point operations of the step by the formula of `mfu`."""
    mfu: float | None
    mfu_causal: float | None
    hfu: float | None
    peak_memory_bytes: int | None
    """The largest of any rank since the start: device memory on a GPU, process memory on a CPU."""
    cpu_seconds: float | None = None
    """Processor time of all ranks in the step: on shared cores steadier than `step_seconds`."""
    skipped: bool = False
    """The step was not taken because its gradient overflowed (fp16)."""


@dataclass(frozen=True, kw_only=True)
class EvalRecord:
    """One evaluation over a whole split. Step 0 is before training."""

    event: ClassVar[str] = "eval"
    step: int
    split: str
    loss: float | None
    """Mean cross-entropy in nats over the target tokens of the split; None without any."""
    perplexity: float | None
    target_tokens: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Every other score of the split, by name."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """The middle 95 % of bootstrap samples of the rows, for those that have one."""
    answers: str | None = None
    """The file with the answers to all rows."""
    asked: str | None = None
    """A hash of the rows and of how they are asked and marked: scores under other hashes cannot be compared."""
    rows: int | None = None
    """Rows that were scored."""
    loss_rows: int | None = None
    """Rows that the loss is over."""
    notices: tuple[str, ...] = ()
    """What a reader of the scores must know of them."""


@dataclass(frozen=True, kw_only=True)
class SaveRecord:
    """One committed checkpoint."""

    event: ClassVar[str] = "save"
    step: int
    path: str
    seconds: float
    """From its beginning until it was safe on the disk."""
    blocked_seconds: float | None = None
    """What of it training has waited; all of it unless it was written behind training."""
    num_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class ResumeRecord:
    """Training goes on after `step`, from the checkpoint at `path`."""

    event: ClassVar[str] = "resume"
    step: int
    path: str
    epoch: float | None = None
    saved_layout: str | None = None
    """Ranks that saved it, as `dp=2 x tp=2`."""
    layout: str | None = None
    """Ranks that go on."""
    seconds: float | None = None
    """From finding the checkpoint to its last tensor in place."""
    num_bytes_by_rank: tuple[int, ...] = ()
    """Bytes of tensors that each rank read."""
    passed_over: tuple[str, ...] = ()
    """Newer folders that were not used, each with the reason."""


@dataclass(frozen=True, kw_only=True)
class SaveFailedRecord:
    """A checkpoint that the disk did not take; training went on (`checkpoint.on_failure`)."""

    event: ClassVar[str] = "save_failed"
    step: int
    reason: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class FaultRecord:
    """Something was wrong with a step, and what was done about it. It stays when training goes back."""

    event: ClassVar[str] = "fault"
    step: int
    kind: str
    """`nonfinite` or `spike`."""
    remedy: str
    """`warn`, `skip`, `rollback` or `stop`."""
    reason: str
    back_to_step: int | None = None
    """The step that training went on after, when it went back."""
    skipped_sequences: int = 0
    """Sequences that are not trained on in this pass because of it."""


@dataclass(frozen=True, kw_only=True)
class SlowRankRecord:
    """A rank that the others have waited for over many steps. It stays when training goes back."""

    event: ClassVar[str] = "slow_rank"
    step: int
    rank: int
    host: str
    own_seconds: float
    """What it took for a step without waiting for others, on average over the last window."""
    others_seconds: float
    """The median of what the others took."""
    step_seconds: float
    """What a step took."""
    num_steps: int
    """Steps in which it was so."""


@dataclass(frozen=True, kw_only=True)
class LostRecord:
    """Work after `step` that was done and is done again, or left out: its own lines were taken away."""

    event: ClassVar[str] = "lost"
    step: int
    """Training goes on after this one."""
    steps: int
    seconds: float
    """Time of the steps, evaluations and saves that are lost."""
    until: str | None = None
    """When the last of them ended, as `time` has it."""


@dataclass(frozen=True, kw_only=True)
class StopRecord:
    """The end of one start: why, and with which exit code."""

    event: ClassVar[str] = "stop"
    step: int
    reason: str
    exit_code: int
    seconds: float
    model_step: int | None = None
    """The step of the model that is the result: the last one, or the best one where the run asks for it."""
    peak_memory_bytes_by_rank: tuple[int | None, ...] = ()
    """As that of a step: allocated on a GPU, resident on a CPU."""
    peak_reserved_bytes_by_rank: tuple[int | None, ...] = ()
    """Of the allocator of a GPU; None without one."""
    peak_rss_bytes_by_rank: tuple[int | None, ...] = ()
    """Resident memory of the process, with what it shares with others."""


Record = (
    RunRecord
    | PlanRecord
    | MemoryRecord
    | StepRecord
    | EvalRecord
    | SaveRecord
    | SaveFailedRecord
    | ResumeRecord
    | FaultRecord
    | SlowRankRecord
    | LostRecord
    | StopRecord
)


def to_object(record: Record, now: datetime | None = None) -> dict[str, Any]:
    """`record` as a JSON object. `now`: the time to stamp it with, in UTC."""
    stamp = (now or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    values = {item.name: getattr(record, item.name) for item in fields(record)}
    clean, nonfinite = finite_json(values)
    line = {"event": record.event, "schema": SCHEMA, "time": stamp, **clean}
    return {**line, "nonfinite": nonfinite} if nonfinite else line


def to_line(record: Record, now: datetime | None = None) -> str:
    """`record` as a line of metrics.jsonl, with its newline."""
    return json.dumps(to_object(record, now), ensure_ascii=False, allow_nan=False) + "\n"


def finite_json(value: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`value` with NaN and infinities replaced by None, and the dotted names of what was replaced.

    >>> finite_json({"loss": float("nan"), "by_rank": [1.0, float("inf")]})
    ({'loss': None, 'by_rank': [1.0, None]}, ['loss', 'by_rank.1'])
    """
    replaced: list[str] = []
    clean = {name: _finite(item, name, replaced) for name, item in value.items()}
    return clean, replaced


def _finite(value: Any, name: str, replaced: list[str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        replaced.append(name)
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item, f"{name}.{key}", replaced) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, f"{name}.{index}", replaced) for index, item in enumerate(value)]
    return value
