"""The labels that the rows of a task have, where the run file does not name them."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from megatune.data.each_row import each_row
from megatune.data.read import Source
from megatune.data.segmenting import Segmenting
from megatune.errors import DataError
from megatune.tasks import TASKS, TaskOptions
from megatune.units import counted


def with_labels(
    options: TaskOptions, task: str, sources: Sequence[Source], *, split_name: str
) -> TaskOptions:
    """`options` with the labels of all rows of `sources`, sorted, unless it names some or the task has none.

    Raises DataError for no rows, a row without a usable label, and fewer than two labels of a classification, or
    none where a text may have several.
    """
    answers = TASKS[task].answers
    if answers is None or answers.labels_of is None or options.labels:
        return options
    labels_of = answers.labels_of
    found: set[str] = set()
    num_rows = 0
    with tempfile.TemporaryDirectory(prefix="megatune-labels-") as scratch:
        for row, columns in each_row(sources, split_name=split_name, scratch=Path(scratch)):
            num_rows += 1
            place = Segmenting(task=task, completion_only=True, columns=columns, split_name=split_name)
            found.update(place.located(row, partial(labels_of, row.values, columns, options)))
    if not num_rows:
        raise DataError(f"data.{split_name} is empty: no row was found in it")
    if task == "classification" and len(found) < (1 if options.multi_label else 2):
        raise DataError(
            f"data.{split_name} has {counted(len(found), 'label')} ({', '.join(sorted(found)) or 'none'}); a "
            f"classification needs {'one' if options.multi_label else 'two'} or more. Name all that there can be in "
            "data.labels"
        )
    return replace(options, labels=tuple(sorted(found)))
