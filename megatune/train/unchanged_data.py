"""Make sure of every byte of the prepared data before anybody trains on it."""

import socket
from collections.abc import Sequence

from megatune.data.prepared import PreparedSet
from megatune.engine.world import World
from megatune.errors import DataError


def refuse_changed_data(sets: Sequence[PreparedSet], local_rank: int, world: World) -> None:
    """Raise DataError on all ranks when a host sees other bytes than were prepared. Collective.

    The first rank of every host reads and hashes all files: what a host sees may be a broken copy in its
    own cache, or on its own disk. Others wait. It takes one read of the files (5 bytes a token), which
    also brings them into the host's memory for the training that follows.
    """
    problem = None
    if local_rank == 0:
        try:
            for prepared in sets:
                prepared.verify()
        except DataError as error:
            problem = f"{socket.gethostname()}: {error}"
    problems = [text for text in world.gather_objects(problem) if text]
    if problems:
        raise DataError(" ".join(problems))
