"""The learning rate of each step, as a pure function: nothing to save, nothing to restore."""

import math

from megatune.config.sections import TrainSection

RANGE_DECADES = 5
"""A range test rises over so many powers of ten, up to train.learning_rate at the last step."""


def warmup_length(train: TrainSection, total_steps: int) -> int:
    """Steps of linear warm-up; a `warmup_steps` below 1 is a share of all steps, as in transformers 5."""
    asked = train.warmup_steps
    return math.ceil(asked * total_steps) if asked < 1 else int(asked)


def learning_rate_at(step: int, train: TrainSection, total_steps: int) -> float:
    """The rate of the step that follows `step` finished ones (0 for the first).

    Rises linearly to the peak over the warm-up, then stays (constant), falls linearly or along a
    half cosine to zero at `total_steps`; the course of transformers' schedules of the same names. A range test
    (Smith 2017, arXiv:1506.01186, section 3.3) rises by the same factor each step, without warm-up.
    """
    if train.lr_scheduler_type == "range_test":
        below = 1 - step / max(1, total_steps - 1)
        return train.learning_rate * math.pow(10.0, -RANGE_DECADES * below)
    warmup = warmup_length(train, total_steps)
    if step < warmup:
        return train.learning_rate * step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if train.lr_scheduler_type == "constant":
        return train.learning_rate
    if train.lr_scheduler_type == "linear":
        return train.learning_rate * max(0.0, 1 - progress)
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
