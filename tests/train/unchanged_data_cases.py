"""What ranks do in the tests of data that has changed."""

import shutil
from pathlib import Path

from parity_steps import world_of

from megatune.data.prepared import PreparedSet
from megatune.errors import DataError
from megatune.train.unchanged_data import refuse_changed_data


def refusal_where_one_host_differs(folder: str, copy: str) -> str:
    """The words of the refusal: each rank is the first of a host, and the second one's copy is broken."""
    world, own = world_of(1), Path(folder)
    if not world.is_first:
        own = Path(shutil.copytree(folder, copy))
        with (own / "tokens.npy").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x7f")
    try:
        refuse_changed_data([PreparedSet.open(own)], local_rank=0, world=world)
    except DataError as error:
        return str(error)
    return "no error"
