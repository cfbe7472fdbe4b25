"""Prove on the real model that the chunked loss is the loss of its logits, before training with it."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from megatune.engine.base import TrainingEngine
from megatune.errors import ModelError

_TOKENS = 32
# Both take the same logits, rounded to the training precision in the one and perhaps not in the other.
_TOLERANCE = {torch.float32: 1e-4}
_LOW_PRECISION_TOLERANCE = 2e-2


@dataclass(frozen=True)
class _Probe:
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class LossCheck:
    """The mean loss of the same random tokens, taken in both ways."""

    chunked: float
    whole: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        return math.isclose(self.chunked, self.whole, rel_tol=self.tolerance)


def check_chunked_loss(engine: TrainingEngine) -> LossCheck:
    """Take the loss of random tokens both ways. Collective: every rank calls it."""
    world, vocabulary = engine.world, engine.built.shape.vocab_size
    ids = torch.randint(0, vocabulary, (1, _TOKENS), generator=torch.Generator().manual_seed(0))
    batch = _Probe(ids, torch.arange(_TOKENS)[None], ids.roll(-1, dims=1))
    found = {}
    with engine.evaluating():
        for chunked in (True, False):
            engine.chunked_loss = chunked
            total = world.sum_over_all(engine.loss(batch).double()).item()
            found[chunked] = total / _TOKENS / world.size
    dtype = next(engine.built.model.parameters()).dtype
    tolerance = _TOLERANCE.get(dtype, _LOW_PRECISION_TOLERANCE)
    return LossCheck(chunked=found[True], whole=found[False], tolerance=tolerance)


def choose_loss(engine: TrainingEngine, asked: bool | Literal["auto"]) -> str:
    """Set how `engine` takes the loss, and say so. Collective: every rank calls it.

    Raises ModelError when chunks were asked for and this model does something to its logits that megatune
    does not know; `auto` then takes the loss from whole logits.
    """
    if engine.built.source.head is not None:
        return "loss: of the head's scores"
    if asked is False:
        engine.chunked_loss = False
        return "loss: from the logits of a whole batch (train.chunked_loss is false)"
    check = check_chunked_loss(engine)
    engine.chunked_loss = check.agrees
    differ = f"{check.chunked:.6g} in chunks, {check.whole:.6g} from whole logits on random tokens"
    if math.isnan(check.chunked) and math.isnan(check.whole):
        raise ModelError(
            f"{engine.built.source.folder}: the loss of random tokens is not a number before anything is trained. Some "
            "of the stored weights are not finite, or too large for this precision."
        )
    if check.agrees:
        return f"loss: in chunks inside the head ({differ})"
    if asked is True:
        raise ModelError(
            f"train.chunked_loss is true, but the loss of a {type(engine.built.model).__name__} is another one so: "
            f"{differ}. Its forward changes the logits in a way megatune does not know. Use train.chunked_loss=auto."
        )
    return f"loss: from the logits of a whole batch, for it is another one in chunks ({differ})"
