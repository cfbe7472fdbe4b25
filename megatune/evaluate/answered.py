"""What a model said to one row."""

from dataclasses import dataclass

from megatune.tasks import Gold


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Either tokens, which a task reads, or an answer in the form of the gold one."""

    ids: list[int] | None = None
    answer: Gold | None = None
    probability: float | None = None
    """Of the answer, where it is one of several labels."""
    loss: float | None = None
    """Sum over the targets of the row, in nats, where it came with the answer."""
    num_targets: int = 0
    """What that loss is the sum of."""
