"""Shared-memory files that DeepSpeed's CPU communication leaves behind when ranks die."""

import os
import re
from pathlib import Path

# deepspeed/ops/csrc/cpu/comm/shm.cpp, shm_initialize: name_uid_address_port, then one file per rank.
_PREFIX = "deepspeed_allreduce_buffer"


def remove_leftover_buffers(
    master_addr: str, master_port: int, folder: Path = Path("/dev/shm")
) -> list[Path]:
    """Delete the all-reduce buffers (66 MiB a rank) of this user's ranks that met at this address and port.

    Call it only while no rank uses the address. Buffers of other runs have another port or user
    in their name and stay. A leftover of the same name would be mapped by the next run on this port.
    """
    ours = re.compile(re.escape(f"{_PREFIX}_{os.getuid()}_{master_addr}_{master_port}_") + r"\d+")
    if not folder.is_dir():
        return []
    leftovers = [file for file in folder.iterdir() if ours.fullmatch(file.name)]
    for file in leftovers:
        file.unlink(missing_ok=True)
    return leftovers
