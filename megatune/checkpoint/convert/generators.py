"""States of random generators for a converted checkpoint: freshly seeded, for another program's cannot go on here."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from megatune.checkpoint.rng import rng_scalars, rng_tensors


def tensors_of(rank: int) -> dict[str, torch.Tensor]:
    """What a rank's tensor file holds of its generators; ranks differ."""
    with _seeded(rank):
        return rng_tensors(torch.device("cpu"))


def scalars_of(rank: int) -> dict[str, Any]:
    """What a rank's JSON file holds of its generators."""
    with _seeded(rank):
        return rng_scalars()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """This process's own generators are as they were afterwards."""
    python, arrays = random.getstate(), np.random.get_state(legacy=True)
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
