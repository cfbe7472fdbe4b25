"""The copy of a rank's training state in host memory, from which a save behind training is written."""

from typing import Literal

from megatune.plan.layout import Layout
from megatune.plan.weights import ModelWeights

Asked = bool | Literal["auto"]
"""`checkpoint.async`."""
MOST_OF_AVAILABLE = 0.5
"""Share of the available host memory that snapshots may take: data, kernels and other programs need some."""


def snapshot_bytes(
    model: ModelWeights,
    layout: Layout,
    *,
    bytes_a_master: int,
    in_one_group: bool = False,
    is_pinned: bool = False,
) -> int:
    """Bytes of the rank that holds the most; `bytes_a_master` is `states.optimizer_bytes`.

    fp32 weights and moments, each element in one data-parallel rank's copy whatever the stage: stage 0
    divides what it saves as stage 3 does (engine/plain.py, `saved`).
    """
    tp, dp = layout.tensor_parallel, layout.data_parallel
    if layout.zero_stage in (0, 3):
        share = model.num_share(tp, dp)
    else:
        share = model.flat_share(tp, dp, in_one_group=in_one_group)
    return pinned_bytes(bytes_a_master * share) if is_pinned else bytes_a_master * share


def pinned_bytes(num_bytes: int) -> int:
    """What torch's allocator of pinned host memory takes: the next power of two (CachingHostAllocator.h).

    >>> pinned_bytes(5 * 2**30) / 2**30
    8.0
    """
    return 1 << max(0, num_bytes - 1).bit_length()
