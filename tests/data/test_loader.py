"""Rows assembled ahead are the rows that would have been assembled at the step."""

import threading

import pytest

from megatune.data.batches import Batch, collate
from megatune.data.examples import Example
from megatune.data.loader import StepLoader
from megatune.data.sampler import Position, next_position

NUM_ROWS, GLOBAL_ROWS = 10, 4


def after(position: Position) -> Position:
    return next_position(position, num_rows=NUM_ROWS, global_rows=GLOBAL_ROWS)


def rows_at(position: Position) -> list[Batch]:
    document = Example(input_ids=[position.epoch + 1, position.cursor + 1], is_target=[True, True])
    return [collate([[document]], pad_id=0)]


def seen(batches: list[Batch]) -> list[int]:
    return batches[0].input_ids[0, :2].tolist()


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_every_step_gets_its_own_rows_over_the_edge_of_epochs(workers: int) -> None:
    loader, position = StepLoader(rows_at, after=after, workers=workers), Position()
    for _ in range(9):
        assert seen(loader.take(position)) == [position.epoch + 1, position.cursor + 1]
        position = after(position)
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_goes_back_or_on_gets_the_rows_of_the_new_place(workers: int) -> None:
    loader = StepLoader(rows_at, after=after, workers=workers)
    for position in (Position(0, 0), Position(0, 4), Position(0, 0), Position(3, 8), Position(4, 0)):
        assert seen(loader.take(position)) == [position.epoch + 1, position.cursor + 1]
    loader.close()


def test_the_next_steps_are_assembled_while_nobody_asks() -> None:
    assembled, enough = [], threading.Event()

    def assemble(position: Position) -> list[Batch]:
        assembled.append(position)
        if len(assembled) == 3:
            enough.set()
        return rows_at(position)

    loader = StepLoader(assemble, after=after, workers=2)
    loader.take(Position())
    assert enough.wait(timeout=30), assembled
    loader.close()
    assert set(assembled) == {Position(0, 0), Position(0, 4), Position(0, 8)}


def test_what_assembling_raises_is_raised_at_its_step() -> None:
    def assemble(position: Position) -> list[Batch]:
        if position.cursor == 4:
            raise OSError("no such row")
        return rows_at(position)

    loader = StepLoader(assemble, after=after, workers=2)
    loader.take(Position())
    with pytest.raises(OSError, match="no such row"):
        loader.take(Position(0, 4))
    loader.close()
