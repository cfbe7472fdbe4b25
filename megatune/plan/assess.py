"""What one layout needs and how fast it is: the ledger, the phases of a step, and the rates drawn from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from megatune.config import Run
from megatune.plan.buckets import keeps_gathered, reused_params
from megatune.plan.flops import StepFlops, model_flops
from megatune.plan.hardware import Accelerator
from megatune.plan.layout import Layout
from megatune.plan.ledger import Ledger, Place, Workload, make_ledger
from megatune.plan.practice import Practice
from megatune.plan.rates import Measured, Rates, cpu_rates_to_fit, rates_of
from megatune.plan.step_time import Phases, step_phases

_TIMES = 2.0
"""From here on a factor is easier to read than a per cent."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is planned: a model and its batch on a machine."""

    run: Run
    """The run file that asks: its rules say which layouts can be trained."""
    policy: Mapping[str, Any]
    """Its DeepSpeed policy; {} without one."""
    work: Workload
    place: Place
    num_devices: int
    global_sequences: int
    accelerator: Accelerator | None
    """None on machines without GPUs."""
    practice: Practice
    """`recompute` in it is set by each layout."""
    measured: Measured = field(default_factory=Measured)
    """By the doctor, and by runs, at the place of the run."""
    disk_bytes_per_s: float | None = None
    """Of one node's local disk, for layouts that offload to it; None: nobody said."""

    def rates(self) -> Rates | None:
        """What times are computed with; None where nobody knows."""
        if self.accelerator is None and not self.place.on_cpu:
            return None
        return rates_of(
            self.accelerator,
            self.measured,
            precision=self.work.precision,
            ranks_per_node=self.place.ranks_per_node,
            num_devices=self.num_devices,
        )

    def rates_to_fit(self) -> Rates | None:
        """What the fitting of constants starts from: the rates of a plan without any, and on CPUs always some."""
        if self.accelerator is None and self.place.on_cpu:
            return cpu_rates_to_fit(self.measured, self.place.ranks_per_node)
        return replace(self, measured=replace(self.measured, calibration=None)).rates()


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """One layout, judged. Times are None where no constants are known for the device or the precision."""

    layout: Layout
    ledger: Ledger
    phases: Phases | None
    tokens_per_second_per_device: float | None
    mfu: float | None
    mfu_causal: float | None
    hfu: float | None

    @property
    def step_s(self) -> float | None:
        return None if self.phases is None else self.phases.total_s

    @property
    def sequence_s(self) -> float | None:
        """Seconds a sequence of the batch: of layouts that take different batches too, what may be compared."""
        return None if self.step_s is None else self.step_s / self.layout.global_sequences

    def beside(self, other: "Assessment") -> str | None:
        """How fast it is by the token: `12% slower`, `2.3 times faster`; None where a time is not known."""
        mine, theirs = self.sequence_s, other.sequence_s
        if mine is None or theirs is None:
            return None
        ratio = mine / theirs
        word = "slower" if ratio >= 1 else "faster"
        if max(ratio, 1 / ratio) >= _TIMES:
            return f"{max(ratio, 1 / ratio):.1f} times {word}"
        change = abs(ratio - 1)
        return f"{change:.0%} {word}" if change >= 0.1 else f"{change:.1%} {word}"


def assess(question: Question, layout: Layout) -> Assessment:
    """Judge `layout`. Raises ModelError when the model cannot be cut to its degree."""
    ledger = make_ledger(question.work, layout, question.place)
    rates = question.rates()
    if layout.offload_kind == "nvme" and question.disk_bytes_per_s is None:
        rates = None
    phases = None if rates is None else timed(question, layout, rates)
    if phases is None:
        return Assessment(
            layout=layout,
            ledger=ledger,
            phases=None,
            tokens_per_second_per_device=None,
            mfu=None,
            mfu_causal=None,
            hfu=None,
        )
    flops = layout_flops(question, layout)
    tokens = layout.global_sequences * question.work.seq
    facts = question.accelerator
    possible = None if facts is None else phases.total_s * facts.peak_bf16_flops * question.num_devices
    return Assessment(
        layout=layout,
        ledger=ledger,
        phases=phases,
        tokens_per_second_per_device=tokens / phases.total_s / question.num_devices,
        mfu=possible and flops.model / possible,
        mfu_causal=possible and flops.model_causal / possible,
        hfu=possible and flops.hardware / possible,
    )


def layout_flops(question: Question, layout: Layout) -> StepFlops:
    """Operations of a step with rows full of tokens, all of them targets, not packed."""
    return model_flops(
        question.work.model,
        tokens=layout.global_sequences * question.work.seq,
        squared_lengths=layout.global_sequences * question.work.seq**2,
        gradient_checkpointing=layout.gradient_checkpointing,
    )


def timed(question: Question, layout: Layout, rates: Rates) -> Phases:
    """The phases of one step of `layout` at `rates`."""
    work, buckets = question.work, question.work.buckets_of(layout)
    whole = work.model.num_local_params(layout.tensor_parallel)
    practice = replace(
        question.practice,
        recompute="full" if layout.gradient_checkpointing else "none",
        keeps_gathered=keeps_gathered(whole, buckets, data_parallel=layout.data_parallel),
        reused_share=min(1.0, reused_params(buckets) / whole),
    )
    return step_phases(
        work.model,
        layout,
        seq=work.seq,
        ranks_per_node=question.place.ranks_per_node,
        device=rates.device,
        network=rates.network,
        practice=practice,
        disk_bytes_per_s=question.disk_bytes_per_s,
    )
