"""What the losses of a classifier head's classes weigh."""

from difflib import get_close_matches

import numpy as np

from megatune.config import Run
from megatune.data.part import LABELS
from megatune.data.prepared import PreparedSet
from megatune.errors import ConfigError
from megatune.model.heads import balanced_positives, balanced_weights


def class_weights(run: Run, prepared: PreparedSet, labels: tuple[str, ...]) -> tuple[float, ...] | None:
    """A weight for each of `labels`; None where all weigh alike. Raises ConfigError for a label there is not.

    prepared: the training rows, made for the head. With `data.multi_label` the weights are of the rows that have
    a label, beside 1 for those that have it not.
    """
    asked = run.train.class_weights
    if asked == "none":
        return None
    if isinstance(asked, dict):
        _refuse_unknown(asked, labels)
        return tuple(asked.get(label, 1.0) for label in labels)
    found = prepared.arrays[LABELS]
    found = found[found >= 0]
    if run.data.multi_label:
        counts = [int(((found >> bit) & 1).sum()) for bit in range(len(labels))]
        return balanced_positives(counts, len(found))
    return balanced_weights(np.bincount(found, minlength=len(labels)).tolist())


def _refuse_unknown(asked: dict[str, float], labels: tuple[str, ...]) -> None:
    problems = []
    for label in sorted(set(asked) - set(labels)):
        near = get_close_matches(label, labels, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        shown = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
        problems.append(
            f"train.class_weights names {label!r}, which is no class of the head.{meant} Classes: {shown}."
        )
    if problems:
        raise ConfigError(problems)
