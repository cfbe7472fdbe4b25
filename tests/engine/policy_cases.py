"""What ranks do in the tests of the shipped DeepSpeed policies: a few steps under each."""

import os
from pathlib import Path
from typing import Any

from parity_steps import SEQUENCES, batches, tiny_run, world_of

from megatune.config import BatchShape
from megatune.engine.zero import ZeroEngine
from megatune.model.source import open_source
from megatune.plan.ds_config import make_ds_config, read_policy


def losses_under(
    folder: str, policy: str | None, settings: dict[str, Any], tp: int, extensions: str
) -> list[float]:
    """The losses of three steps under a policy file; without one under DeepSpeed's defaults.

    extensions: the folder with the compiled Adam; without it every rank would begin to compile.
    """
    os.environ["TORCH_EXTENSIONS_DIR"] = extensions
    world = world_of(tp)
    run = tiny_run(folder, tp, **settings)
    micro = SEQUENCES // world.data_parallel
    batch = BatchShape(micro=micro, accumulation=1, global_sequences=SEQUENCES)
    settings_of_policy = read_policy(Path(policy) if policy else None)
    zero = settings_of_policy.get("zero_optimization", {})
    if "zero_hpz_partition_size" in zero:
        zero["zero_hpz_partition_size"] = 2  # of the four ranks of the test, as of the nodes of a user
    ds_config = make_ds_config(run, batch, settings_of_policy)
    engine = ZeroEngine(run, open_source(Path(folder)), world, ds_config)
    first = world.data_rank * micro
    losses = []
    for tokens in batches(3):
        share = type(tokens)(*(getattr(tokens, name)[first : first + micro] for name in vars(tokens)))
        targets = world.sum_over_data((share.labels != -100).sum())
        loss = engine.loss(share) / targets
        engine.backward(loss, is_last=True)
        engine.step(0.1)
        losses.append(world.sum_over_data(loss.detach()).item())
    return losses
