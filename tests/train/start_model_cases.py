"""What ranks do in the tests of models that begin with other tokens."""

from typing import Any

import torch
from parity_steps import SEQUENCES, Tokens, plain_engine, run_steps, tiny_run, world_of, zero_engine

TOKENS = 24


def train_with_ids(folders: list[str], tp: int, dp: int, vocab_size: int) -> list[Any]:
    """Losses, gradient norms and weights of three steps at (tp, dp), or of the reference for tp 0, a model each."""
    generator = torch.Generator().manual_seed(3)
    shape = (SEQUENCES, TOKENS)
    steps = [
        Tokens(
            torch.randint(0, vocab_size, shape, generator=generator),
            torch.arange(TOKENS).expand(shape),
            torch.randint(0, vocab_size, shape, generator=generator),
        )
        for _ in range(3)
    ]
    found = []
    for folder in folders:
        run = tiny_run(folder, max(1, tp))
        engine = plain_engine(run) if tp == 0 else zero_engine(run, world_of(tp), micro=SEQUENCES // dp)
        losses, norms = run_steps(engine, steps, accumulation=1, learning_rate=0.1)
        weights = {key: value.numpy().copy() for key, value in engine.weights(master=True)}
        found.append((losses, norms, weights))
    return found
