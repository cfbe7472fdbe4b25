"""Choosing how the loss is taken, with a model that does something unknown to its logits."""

from typing import Any

from parity_steps import SEQUENCES, batches, tiny_run, world_of, zero_engine

from megatune.errors import ModelError
from megatune.evaluate.loss_check import choose_loss


def choose(folder: str, asked: Any, factor: float) -> tuple[str, bool, float]:
    """The words, whether the loss is chunked, and a loss; the model multiplies its logits by `factor`."""
    world = world_of(1)
    engine = zero_engine(tiny_run(folder), world, micro=SEQUENCES)
    model = engine.built.model
    usual = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = usual(*args, **kwargs)
        output.logits = output.logits * factor
        return output

    model.forward = forward
    try:
        words = choose_loss(engine, asked)
    except ModelError as error:
        return str(error), engine.chunked_loss, 0.0
    with engine.evaluating():
        return words, engine.chunked_loss, engine.loss(batches(1)[0]).item()
