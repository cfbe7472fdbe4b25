"""Whether two programs did the same work: their losses, step by step."""

from collections.abc import Sequence

LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2**-8, "fp16": 2**-8}
"""Relative, per step. fp32: orders of summation differ, and each step builds on the one before;
half precision: one unit in the last place of a weight."""


def first_difference(
    theirs: Sequence[float | None], ours: Sequence[float | None], precision: str
) -> tuple[int, float | None, float | None] | None:
    """The first step (from 1) that both took whose losses differ, with both; None when there is none.

    A loss that is None was no finite number, and equals nothing.

    >>> first_difference([2.0, 1.0], [2.0, 1.1, 0.9], "fp32")
    (2, 1.0, 1.1)
    """
    tolerance = LOSS_TOLERANCE[precision]
    for step, (a, b) in enumerate(zip(theirs, ours, strict=False), start=1):
        if a is None or b is None or abs(a - b) > tolerance * abs(a):
            return step, a, b
    return None
