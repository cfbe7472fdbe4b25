"""What ranks do in the tests of the world: one acts for all, and groups with a limit on waiting."""

from typing import Any

import torch
from parity_steps import world_of

from megatune.engine.world import make_world
from megatune.errors import CheckpointError, ConfigError

FAILURES = {
    "checkpoint": CheckpointError("the disk is gone"),
    "config": ConfigError(["a is wrong", "b is wrong"]),
    "other": KeyError("lost"),
}


def first_rank_answers() -> list[Any]:
    """The answers of an act that gives something, and of one that gives nothing; who acted."""
    world = world_of(1)
    acted: list[int] = []

    def act() -> tuple[str, int]:
        acted.append(world.rank)
        return "from", world.rank

    return [world.first_rank(act), world.first_rank(lambda: acted.append(world.rank)), acted]


def first_rank_failures() -> dict[str, tuple[str, str]]:
    """The error each failure of rank 0 becomes here; the world works on after it."""
    world, found = world_of(1), {}
    for name, failure in FAILURES.items():

        def act(failure: Exception = failure) -> None:
            raise failure

        try:
            world.first_rank(act)
        except Exception as error:
            found[name] = (type(error).__name__, str(error))
    world.barrier()
    return found


def group_timeouts(timeout_s: float) -> list[float]:
    """Seconds that collectives of the tensor and of the data group wait."""
    world_of(2)
    world = make_world(2, torch.device("cpu"), timeout_s=timeout_s)
    groups = [world.get_model_parallel_group(), world.get_data_parallel_group()]
    return [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups]
