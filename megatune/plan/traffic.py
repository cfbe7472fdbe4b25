"""What the ranks of a layout send in one optimizer step, in bytes, before any link is known."""

from dataclasses import dataclass, replace

from megatune.plan.layout import Layout
from megatune.plan.practice import Practice
from megatune.plan.states import GRADIENT_BYTES


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Every weight or its gradient once round the data-parallel ranks: an all-gather, or a reduce-scatter.

    An all-reduce is two of them (Thakur et al. 2005).
    """

    element_bytes: float
    share: float = 1.0
    """Of the weights."""
    is_near: bool = False
    """Among the neighbours of hpZ only."""

    @property
    def bytes_a_weight(self) -> float:
        return self.element_bytes * self.share


@dataclass(frozen=True, kw_only=True)
class DataTraffic:
    """The passes of data parallelism in one step."""

    a_micro_batch: tuple[Pass, ...] = ()
    a_step: tuple[Pass, ...] = ()


def data_traffic(layout: Layout, practice: Practice) -> DataTraffic:
    """What the layout's ZeRO stage sends (arXiv:1910.02054, section 7, where an engine does no more than it must).

    Stage 0 sums gradients once a step; stage 1 too, and then gathers weights. Stage 2 divides gradients with every
    micro-batch. Stage 3 also gathers weights for each forward and each backward, but for those that it keeps.

    >>> from megatune.plan.layout import Layout
    >>> flash = Practice(attention="flash", fused_elementwise=True)
    >>> layouts = [Layout(tensor_parallel=1, data_parallel=8, micro_batch=1, accumulation=4, zero_stage=stage,
    ...                   gradient_checkpointing=False) for stage in range(4)]
    >>> sent = [data_traffic(layout, flash) for layout in layouts]
    >>> [(len(passes.a_micro_batch), len(passes.a_step)) for passes in sent]
    [(0, 2), (0, 2), (1, 1), (3, 0)]
    """
    if layout.data_parallel == 1:
        return DataTraffic()
    gathered, reduced = Pass(element_bytes=practice.gather_bytes), Pass(element_bytes=practice.reduce_bytes)
    if layout.zero_stage == 0:
        return DataTraffic(a_step=(Pass(element_bytes=practice.sum_bytes),) * 2)
    if layout.zero_stage < 3:
        divided = (reduced,) * (1 if practice.scatters_gradients else 2)
        if layout.zero_stage == 1:
            return DataTraffic(a_step=(*divided, gathered))
        return DataTraffic(a_micro_batch=divided, a_step=(gathered,))
    if practice.keeps_gathered:
        return DataTraffic(a_micro_batch=(reduced,), a_step=(gathered,))
    # What stays from forward to backward goes with its end: the next micro-batch gathers everything.
    again = replace(gathered, share=1 - practice.reused_share, is_near=practice.near_ranks > 1)
    return DataTraffic(a_micro_batch=(gathered, again, reduced))


def host_bytes_a_weight(layout: Layout, element_bytes: float) -> float:
    """What a rank moves between its device and the host in one step, for each weight that it steps.

    Stage 3 adds gradients up on the device and keeps their sums on the host: with every micro-batch they come and go,
    with the first too, and the last one's are written to the optimizer's place once more (stage3.py,
    `partition_grads`). Stages 1 and 2 keep the sums on the device and send them once.
    """
    if layout.offload == "none":
        return 0.0
    if layout.zero_stage < 3:
        return GRADIENT_BYTES + element_bytes
    gradients = (2 * layout.accumulation + 1) * GRADIENT_BYTES
    weights = (
        2 * layout.accumulation if layout.offload == "all" else 1
    )  # for forward and backward, or the new ones
    return gradients + weights * element_bytes
