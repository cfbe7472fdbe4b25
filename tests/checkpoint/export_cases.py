"""What ranks do in the tests of the export: train a little, save, and say what the engine computes."""

from pathlib import Path

import numpy as np
import torch
from parity_steps import SEQUENCES, batches, run_steps, tiny_run, world_of, zero_engine
from state_cases import save
from tiny_models import VOCABULARY


def probe() -> torch.Tensor:
    """The ids that engine and exported model are compared on, (2, 12)."""
    return torch.randint(0, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(8))


def train_and_save(folders: dict[str, str], tp: int, checkpoints: str) -> dict[str, tuple[str, np.ndarray]]:
    """Model -> (its checkpoint, the trained engine's logits of `probe` over the whole vocabulary)."""
    world = world_of(tp)
    found = {}
    for name, folder in folders.items():
        engine = zero_engine(tiny_run(folder, tp), world, micro=SEQUENCES // world.data_parallel)
        run_steps(engine, batches(2), accumulation=1, learning_rate=0.1)
        saved = save(engine, Path(checkpoints) / name, 2)
        engine.built.head.gather_logits = tp > 1
        ids = probe()
        with engine.evaluating():
            logits = engine.logits(ids, torch.arange(ids.shape[1]).expand(ids.shape))
        found[name] = (str(saved), logits.float().numpy())
    return found
