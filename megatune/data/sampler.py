"""Which rows a step trains on: pure functions of (seed, epoch, cursor), without a generator's state.

The order of the rows depends on the seed and the epoch only. Ranks, accumulation and micro-batches
divide a global batch among themselves and never change it, so a run can be resumed on another
number of devices and go on with exactly the rows it has not seen.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from megatune.config import Run
from megatune.data.pack import shuffled

RowNumbers = npt.NDArray[np.int64]


@dataclass(frozen=True, order=True)
class Position:
    """How far a run has come in its data; all that a checkpoint keeps of the sampler."""

    epoch: int = 0
    """Epochs completed."""
    cursor: int = 0
    """Rows of the present epoch that were trained on."""


def epoch_order(num_rows: int, *, seed: int, epoch: int) -> RowNumbers:
    """All row numbers in the order of `epoch`; read-only, (num_rows,)."""
    return _epoch_order(num_rows, seed, epoch)


def step_rows(position: Position, *, num_rows: int, global_rows: int, seed: int) -> RowNumbers:
    """The rows of the global batch that begins at `position`, at most `global_rows` of them.

    The last batch of an epoch holds what is left: nothing is dropped and nothing comes twice.
    """
    order = epoch_order(num_rows, seed=seed, epoch=position.epoch)
    return order[position.cursor : position.cursor + global_rows]


def next_position(position: Position, *, num_rows: int, global_rows: int) -> Position:
    """Where the step after the one at `position` begins."""
    cursor = position.cursor + global_rows
    return Position(position.epoch, cursor) if cursor < num_rows else Position(position.epoch + 1, 0)


def position_of_step(step: int, *, num_rows: int, global_rows: int) -> Position:
    """Where step number `step`, counted from 0, begins in a run whose batch size never changed."""
    epoch, step_of_epoch = divmod(step, num_steps_per_epoch(num_rows, global_rows))
    return Position(epoch, step_of_epoch * global_rows)


def num_steps_per_epoch(num_rows: int, global_rows: int) -> int:
    """Steps that see every row once; the last may be short."""
    return -(-num_rows // global_rows)


def total_steps(run: Run, num_rows: int, global_rows: int) -> int:
    """Optimizer steps of the whole run."""
    if run.train.max_steps is not None:
        return run.train.max_steps
    return max(1, round(run.train.num_train_epochs * num_steps_per_epoch(num_rows, global_rows)))


def micro_batch_rows(
    rows: RowNumbers, *, micro_batch: int, accumulation: int, data_parallel: int, dp_rank: int, turn: int = 0
) -> list[RowNumbers]:
    """The part of one global batch that data-parallel rank `dp_rank` trains on, as micro-batches.

    Always `accumulation` arrays of at most `micro_batch` rows; those at the end are empty when the
    batch is short, and no two ranks differ by more than one row. Neighbours in `rows` stay together, and the ranks
    take turns, from `turn` on: where the longest rows come first, no rank has them always. All ranks of a
    tensor-parallel group pass the same `dp_rank` and so see the same rows.
    """
    room = micro_batch * accumulation * data_parallel
    if len(rows) > room:
        raise ValueError(
            f"{len(rows)} rows do not fit {micro_batch} x {accumulation} x {data_parallel} = {room}"
        )
    at_once = micro_batch * data_parallel
    return [
        np.array_split(rows[i * at_once : (i + 1) * at_once], data_parallel)[
            (dp_rank + turn + i) % data_parallel
        ]
        for i in range(accumulation)
    ]


@lru_cache(maxsize=2)  # each step asks for the order of its epoch; a resumed run for one more
def _epoch_order(num_rows: int, seed: int, epoch: int) -> RowNumbers:
    order = shuffled(num_rows, seed, epoch)
    order.flags.writeable = False
    return order
