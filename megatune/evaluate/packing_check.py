"""Prove on the real model that packed documents do not read each other, before training on them."""

from dataclasses import dataclass

import torch

from megatune.engine.base import Engine
from megatune.errors import ModelError

_DOCUMENT_TOKENS = 24
# A leak moves the logits of document B by a good part of what document A's own change moves A's;
# rounding moves them not at all, or in the last bit where a kernel adds in another order.
_LARGEST_SHARE = 1e-3


@dataclass(frozen=True)
class LeakMeasure:
    """How far logits move when the tokens of document A change."""

    own: float
    """Largest change of a logit inside document A."""
    other: float
    """Largest change of a logit of document B, packed behind it."""

    @property
    def leaks(self) -> bool:
        return self.other > _LARGEST_SHARE * self.own


def measure_leak(engine: Engine) -> LeakMeasure:
    """Run document B behind two different documents A. Collective: every rank calls it."""
    world, vocabulary = engine.world, engine.built.shape.vocab_size
    generator = torch.Generator().manual_seed(0)
    length = _DOCUMENT_TOKENS
    ids = torch.randint(0, vocabulary, (1, 2 * length), generator=generator)
    changed = ids.clone()
    changed[:, :length] = (changed[:, :length] + 1 + vocabulary // 2) % vocabulary
    positions = torch.arange(length).repeat(2)[None]
    with engine.evaluating():
        moved = (engine.logits(ids, positions) - engine.logits(changed, positions)).float().abs()
    found = torch.zeros(2, world.size, dtype=torch.float64, device=world.device)
    found[0, world.rank], found[1, world.rank] = moved[:, :length].max(), moved[:, length:].max()
    own, other = world.sum_over_all(found).amax(dim=1).tolist()
    return LeakMeasure(own, other)


def refuse_leaking_packing(engine: Engine) -> LeakMeasure:
    """Raise ModelError when this model mixes packed documents. Collective: every rank calls it."""
    measure = measure_leak(engine)
    if measure.leaks or not measure.own > 0:
        raise ModelError(
            f"data.packing is true, but {type(engine.built.model).__name__} with attention "
            f"'{engine.built.model.config._attn_implementation}' lets packed documents read each other: changing "
            f"one document moved the logits of the next by {measure.other:.3g} ({measure.own:.3g} inside itself). "
            "Training would learn from text that is not there. Use data.packing=false, or another "
            "model.attn_implementation."
        )
    return measure
