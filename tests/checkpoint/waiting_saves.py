"""A save that the caller waits for."""

from pathlib import Path

from megatune.checkpoint.in_flight import SaveInFlight
from megatune.checkpoint.write import Shared
from megatune.engine.state import RankState
from megatune.engine.world import World


def save_checkpoint(checkpoints: Path, *, world: World, state: RankState, shared: Shared) -> Path:
    """Save, and return the folder. Collective: every rank calls it. Raises on every rank when one rank fails."""
    save = SaveInFlight(checkpoints, world=world, state=state, shared=shared)
    save.begin()
    save.wait()
    while not save.advance():
        save.wait()
    return save.final
