"""Which arithmetic a run uses where there is a choice: agreed by all ranks, so that all compute the same."""

from functools import cache

from megatune.engine.world import World
from megatune.model.widened import fp32_advantage, is_worth_it


def widens_bf16(precision: str, world: World) -> bool:
    """Should bf16 be multiplied by way of fp32 on these processors? Collective: every rank calls it.

    The first rank's processor decides for all.
    """
    if precision != "bf16" or world.device.type != "cpu":
        return False
    return is_worth_it(world.broadcast_object(_own_advantage() if world.is_first else None))


@cache
def _own_advantage() -> float:
    return fp32_advantage()
