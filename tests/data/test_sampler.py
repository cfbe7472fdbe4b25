"""Each row once an epoch, in an order that no layout can change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatune.data.sampler import (
    Position,
    epoch_order,
    micro_batch_rows,
    next_position,
    num_steps_per_epoch,
    position_of_step,
    step_rows,
)

SMALL = st.integers(1, 5)


def epoch_of_steps(num_rows, global_rows, seed, epoch):
    position, steps = Position(epoch), []
    while position.epoch == epoch:
        steps.append(step_rows(position, num_rows=num_rows, global_rows=global_rows, seed=seed))
        position = next_position(position, num_rows=num_rows, global_rows=global_rows)
    return steps


@settings(deadline=None)
@given(st.integers(1, 60), SMALL, SMALL, SMALL, st.integers(0, 9), st.integers(0, 3), st.integers(0, 9))
def test_the_ranks_of_any_layout_train_each_row_once_in_the_same_steps(
    num_rows, micro_batch, accumulation, data_parallel, seed, epoch, turn
):
    global_rows = micro_batch * accumulation * data_parallel
    steps = epoch_of_steps(num_rows, global_rows, seed, epoch)
    layout = {"micro_batch": micro_batch, "accumulation": accumulation, "data_parallel": data_parallel}
    for rows in steps:
        by_rank = [micro_batch_rows(rows, **layout, dp_rank=rank, turn=turn) for rank in range(data_parallel)]
        assert all(len(batches) == accumulation for batches in by_rank)
        assert all(len(batch) <= micro_batch for batches in by_rank for batch in batches)
        loads = [sum(map(len, batches)) for batches in by_rank]
        assert max(loads) - min(loads) <= 1
        together = np.concatenate([batch for batches in by_rank for batch in batches])
        assert sorted(together) == sorted(rows)
    assert len(steps) == num_steps_per_epoch(num_rows, global_rows)
    assert np.concatenate(steps).tolist() == epoch_order(num_rows, seed=seed, epoch=epoch).tolist()
    assert sorted(np.concatenate(steps)) == list(range(num_rows))


def test_only_the_last_batch_of_an_epoch_is_short():
    assert [len(rows) for rows in epoch_of_steps(10, 4, seed=0, epoch=0)] == [4, 4, 2]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(epoch_order(50, seed=s, epoch=e).tolist()) for s in range(5) for e in range(5)}
    assert len(orders) == 25


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 30))
def test_the_position_of_a_step_is_where_the_steps_before_it_lead(num_rows, global_rows, step):
    position = Position()
    for _ in range(step):
        position = next_position(position, num_rows=num_rows, global_rows=global_rows)
    assert position == position_of_step(step, num_rows=num_rows, global_rows=global_rows)


def test_a_run_resumed_with_another_batch_size_sees_exactly_the_rows_that_are_left():
    seen = step_rows(Position(), num_rows=30, global_rows=8, seed=7)
    position, rest = next_position(Position(), num_rows=30, global_rows=8), []
    while position.epoch == 0:
        rest += step_rows(position, num_rows=30, global_rows=5, seed=7).tolist()
        position = next_position(position, num_rows=30, global_rows=5)
    assert [*seen.tolist(), *rest] == epoch_order(30, seed=7, epoch=0).tolist()


def test_the_order_of_an_epoch_cannot_be_changed_by_who_reads_it():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(5, seed=0, epoch=0)[0] = 3


def test_a_batch_that_the_layout_cannot_hold_is_refused():
    with pytest.raises(ValueError, match=r"9 rows do not fit 2 x 2 x 2 = 8"):
        micro_batch_rows(np.arange(9), micro_batch=2, accumulation=2, data_parallel=2, dp_rank=0)
