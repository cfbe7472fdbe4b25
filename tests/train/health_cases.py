"""Runs whose losses are made bad at chosen calls of the step."""

import hashlib
import json
from typing import Any

from tiny_runs import train

FACTORS = {"nan": float("nan"), "spike": 50.0}


def train_with_bad_steps(run_file: str, overrides: list[str], bad: dict[int, str]) -> str:
    """The exit code and a hash of this rank's master weights after each step, as JSON; or the error's words.

    `bad`: what becomes of the loss of rank 1's micro-batches, by the number of the call of the step.
    """
    from megatune.engine.zero import ZeroEngine
    from megatune.errors import MegatuneError

    original_loss, original_step = ZeroEngine.loss, ZeroEngine.step
    calls = 1
    hashes: dict[int, str] = {}

    def loss(self: ZeroEngine, batch: Any) -> Any:
        value = original_loss(self, batch)
        factor = FACTORS.get(bad.get(calls, ""), 1.0)
        is_here = self.world.rank == 1 or factor == FACTORS["spike"]
        return value * factor if is_here and self._engine.training else value

    def step(self: ZeroEngine, learning_rate: float, **how: Any) -> Any:
        nonlocal calls
        outcome = original_step(self, learning_rate, **how)
        parts = self._engine.optimizer.fp32_partitioned_groups_flat
        hashes[calls] = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in parts)).hexdigest()
        calls += 1
        return outcome

    ZeroEngine.loss, ZeroEngine.step = loss, step  # type: ignore[method-assign]
    try:
        return f"{train(run_file, overrides)} {json.dumps(hashes)}"
    except MegatuneError as error:
        return f"error: {error}"
    finally:
        ZeroEngine.loss, ZeroEngine.step = original_loss, original_step  # type: ignore[method-assign]
