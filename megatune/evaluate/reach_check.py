"""Prove on the real model which tokens its logits come from, before training on them."""

from dataclasses import dataclass

import torch

from megatune.engine.base import Predictor
from megatune.errors import ModelError

_DOCUMENT_TOKENS = 24
# A leak moves the logits of another document by a good part of what the change moves its own; rounding moves them not
# at all, or in the last bit where a kernel adds in another order, as experts with other tokens beside them may.
_LARGEST_SHARE = {torch.float32: 1e-3}
_LARGEST_SHARE_OF_LOW_PRECISION = 2e-2


@dataclass(frozen=True)
class Reach:
    """How far logits move when tokens elsewhere change. Of two documents in one row, A and then B."""

    own: float
    """Largest change of a logit of A when A changes."""
    earlier: float
    """Largest change of a logit of A when B changes, which is later."""
    next: float | None = None
    """Largest change of a logit of B when A changes; None where A and B are one text."""
    largest_share: float = _LARGEST_SHARE[torch.float32]
    """Of `own`, that a rounding may move a logit."""

    @property
    def is_causal(self) -> bool:
        return self.earlier <= self.largest_share * self.own

    @property
    def is_apart(self) -> bool:
        """Whether packed documents do not read each other."""
        return self.next is not None and self.next <= self.largest_share * self.own


def check_reach(engine: Predictor, *, packed: bool) -> str:
    """Refuse a model that sees what it is to predict; with `packed`, keep documents apart. Collective.

    Says what was found. Raises ModelError where a later token moves earlier logits, or packed documents move each
    other's and the model takes no masks that would keep them apart. Such masks are given from here on.
    """
    model, masks = type(engine.built.model).__name__, engine.built.masks
    reach = measure_reach(engine, packed=packed)
    if not reach.own > 0:
        raise ModelError(
            f"no logit of this {model} moves when its tokens change ({reach.own:.3g}): its weights are all alike, or "
            f"not finite. Look at the files of {engine.built.source.folder}."
        )
    if not reach.is_causal:
        raise ModelError(
            f"this {model} is no causal language model as it is: changing later tokens moved earlier logits by "
            f"{reach.earlier:.3g} ({reach.own:.3g} their own). It would learn to copy what it is to predict. Use a "
            "decoder-only model, or set what makes this one causal (often is_decoder) in its config.json."
        )
    if not packed:
        return f"reach: changing later tokens moves earlier logits by {reach.earlier:.1e} ({reach.own:.1e} their own)"
    given = ""
    if not reach.is_apart and masks.can_be_given:
        masks.are_given = True
        given = ", with masks that megatune gives this model"
        reach = measure_reach(engine, packed=True)
    if not reach.is_apart:
        attention = engine.built.model.config._attn_implementation
        raise ModelError(
            f"data.packing is true, but {model} with attention '{attention}' lets packed documents read each other: "
            f"changing one document moved the logits of the next by {reach.next:.3g} ({reach.own:.3g} inside itself). "
            "Training would learn from text that is not there. Use data.packing=false, or another "
            "model.attn_implementation."
        )
    return (
        f"packing: changing one document moves the logits of the next by {reach.next:.1e} "
        f"({reach.own:.1e} inside itself){given}"
    )


def measure_reach(engine: Predictor, *, packed: bool) -> Reach:
    """Run a row whose halves change in turn, `packed` as two documents. Collective: every rank calls it."""
    vocabulary = engine.built.shape.vocab_size
    length = _DOCUMENT_TOKENS if packed else _DOCUMENT_TOKENS // 2
    ids = torch.randint(0, vocabulary, (1, 2 * length), generator=torch.Generator().manual_seed(0))
    first, second = slice(0, length), slice(length, 2 * length)
    positions = torch.arange(length).repeat(2) if packed else torch.arange(2 * length)

    def logits(changed: slice | None) -> torch.Tensor:
        shown = ids.clone()
        if changed is not None:
            shown[:, changed] = (shown[:, changed] + 1 + vocabulary // 2) % vocabulary
        return engine.logits(shown, positions[None]).float()

    with engine.evaluating():
        plain, in_first, in_second = logits(None), logits(first), logits(second)
    moved = [
        (plain - in_first)[:, first].abs().max(),
        (plain - in_second)[:, first].abs().max(),
        (plain - in_first)[:, second].abs().max(),
    ]
    own, earlier, later = _most_of_any_rank(engine, moved)
    share = _LARGEST_SHARE.get(engine.built.model.dtype, _LARGEST_SHARE_OF_LOW_PRECISION)
    return Reach(own, earlier, later if packed else None, share)


def _most_of_any_rank(engine: Predictor, values: list[torch.Tensor]) -> list[float]:
    """NaN where one rank has it."""
    world = engine.world
    found = torch.zeros(len(values), world.size, dtype=torch.float64, device=world.device)
    for index, value in enumerate(values):
        found[index, world.rank] = value
    return world.sum_over_all(found).amax(dim=1).tolist()
