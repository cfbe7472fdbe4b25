"""Share rows out over data-parallel ranks, batch by batch, and bring the answers back together."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from megatune.engine.world import World
from megatune.errors import MegatuneError

Answer = TypeVar("Answer")
_ROUNDS_BETWEEN_LOOKS = 4  # each is one small collective, and ranks wait for the slowest


def answer_in_rounds(
    world: World,
    lengths: Sequence[int],
    answer: Callable[[list[int], int], Sequence[Answer]],
    *,
    rows_at_once: int,
    in_step: bool,
    is_given_up: Callable[[], bool],
) -> list[Answer] | None:
    """The answer to every row, in order, on every rank. Collective: every rank calls it.

    lengths: of the prompts; rows of like length share a batch, and the batches do not depend on the ranks.
    answer: (row numbers, batch number) -> an answer for each. `in_step`: all ranks must answer equally
    often, so those with a batch less answer one again. None when `is_given_up`, which must say the same on
    all ranks, has put an end to it.
    """
    order = sorted(
        range(len(lengths)), key=lambda row: -lengths[row]
    )  # the longest first: memory fails early
    batches = [order[at : at + rows_at_once] for at in range(0, len(order), rows_at_once)]
    num_rounds = -(-len(batches) // world.data_parallel)
    found: dict[int, Answer] = {}
    for number in range(num_rounds):
        batch = number * world.data_parallel + world.data_rank
        if batch < len(batches):
            found.update(zip(batches[batch], answer(batches[batch], batch), strict=True))
        elif in_step:
            answer(batches[-1], len(batches) - 1)
        if (number + 1) % _ROUNDS_BETWEEN_LOOKS == 0 and is_given_up():
            return None
    return _together(world, found, len(lengths))


def _together(world: World, found: dict[int, Answer], num_rows: int) -> list[Answer]:
    """Every row once: ranks of a tensor-parallel group hold the same answers, and the first of each sends."""
    parts = world.gather_objects(found if world.tensor_rank == 0 else {})
    merged = {row: answer for part in parts for row, answer in part.items()}
    if sorted(merged) != list(range(num_rows)) or sum(map(len, parts)) != num_rows:
        raise MegatuneError(
            f"{num_rows} rows were asked and {sum(map(len, parts))} answered. This is a bug: please report it."
        )
    return [merged[row] for row in range(num_rows)]
