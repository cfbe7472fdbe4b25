"""The states of all random generators of a rank, without pickle."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatune.checkpoint.layout import rank_file, read_json
from megatune.checkpoint.tensors import SliceFile
from megatune.errors import CheckpointError


def rng_tensors(device: torch.device) -> dict[str, torch.Tensor]:
    """torch's generators, as byte tensors."""
    states = {"rng/torch": torch.get_rng_state()}
    return states | ({"rng/cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def rng_scalars() -> dict[str, Any]:
    """Python's and numpy's generators, as JSON values."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
    }


def restore_rng(checkpoint: Path, rank: int, device: torch.device) -> None:
    """Put every generator of `rank` back where it was. Raises CheckpointError naming an unreadable file."""
    file = SliceFile(checkpoint / rank_file(rank, "safetensors"))
    path = checkpoint / rank_file(rank, "json")
    try:
        scalars = read_json(path)["rng"]
        version, internal, gauss = scalars["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, position, has_gauss, cached = scalars["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no states of random generators: {error}.") from error
    torch.set_rng_state(file.read("rng/torch"))
    if device.type == "cuda" and "rng/cuda" in file.names:
        torch.cuda.set_rng_state(file.read("rng/cuda"), device)
