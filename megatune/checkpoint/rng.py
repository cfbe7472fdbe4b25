"""The states of all random generators of a rank, without pickle."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


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


def restore_rng(
    tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any], device: torch.device
) -> None:
    """Put every generator back where it was."""
    version, internal, gauss = scalars["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = scalars["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["rng/torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng/cuda"], device)
