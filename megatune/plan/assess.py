"""What one layout needs and how fast it is: the ledger, the phases of a step, and the rates drawn from them."""

from dataclasses import dataclass, replace

from megatune.plan.flops import StepFlops, step_flops
from megatune.plan.hardware import Accelerator
from megatune.plan.layout import Layout
from megatune.plan.ledger import Ledger, Place, Workload, make_ledger
from megatune.plan.links import Links
from megatune.plan.network import network_of
from megatune.plan.practice import Practice
from megatune.plan.speeds import speeds_of
from megatune.plan.step_time import Phases, step_phases
from megatune.plan.work import Device


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is planned: a model and its batch on a machine."""

    work: Workload
    place: Place
    num_devices: int
    global_sequences: int
    accelerator: Accelerator | None
    """None on machines without GPUs."""
    practice: Practice
    """`recompute` in it is set by each layout."""
    links: Links | None = None
    """What the doctor measured there."""


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


def assess(question: Question, layout: Layout) -> Assessment:
    """Judge `layout`. Raises ModelError when the model cannot be cut to its degree."""
    ledger = make_ledger(question.work, layout, question.place)
    phases = _phases(question, layout)
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
    assert question.accelerator is not None, "there are no times without a device"
    flops = layout_flops(question, layout)
    tokens = layout.global_sequences * question.work.seq
    possible = phases.total_s * question.accelerator.peak_bf16_flops * question.num_devices
    return Assessment(
        layout=layout,
        ledger=ledger,
        phases=phases,
        tokens_per_second_per_device=tokens / phases.total_s / question.num_devices,
        mfu=flops.model / possible,
        mfu_causal=flops.model_causal / possible,
        hfu=flops.hardware / possible,
    )


def layout_flops(question: Question, layout: Layout) -> StepFlops:
    """Operations of a step with rows full of tokens, all of them targets, not packed."""
    model = question.work.model
    return step_flops(
        num_matmul_params=model.num_matmul_params,
        num_head_params=model.num_head_params,
        num_layers=model.shape.num_layers,
        attention_width=model.shape.attention_width,
        tokens=layout.global_sequences * question.work.seq,
        target_tokens=layout.global_sequences * question.work.seq,
        squared_lengths=layout.global_sequences * question.work.seq**2,
        gradient_checkpointing=layout.gradient_checkpointing,
    )


def _phases(question: Question, layout: Layout) -> Phases | None:
    facts = question.accelerator
    speeds = speeds_of(facts.generation) if facts else None
    if facts is None or speeds is None or question.work.precision == "fp32":
        return None
    practice = replace(question.practice, recompute="full" if layout.gradient_checkpointing else "none")
    return step_phases(
        question.work.model,
        layout,
        seq=question.work.seq,
        ranks_per_node=question.place.ranks_per_node,
        device=Device(facts=facts, speeds=speeds, peak_flops=facts.peak_bf16_flops),
        network=network_of(facts, speeds, question.links),
        practice=practice,
    )
