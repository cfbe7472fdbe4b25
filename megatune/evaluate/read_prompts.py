"""Prompts that a model has read once, and what it expects after each: next, or behind further tokens."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from megatune.engine.speaker import Speaker
from megatune.evaluate.decoding import left_padded
from megatune.model.forward import accepts

_FILLER = 0
"""A token that nobody reads."""


class ReadPrompts:
    """A batch of prompts in the key-value cache of a model. Ranks of a tensor-parallel group make it together."""

    def __init__(self, speaker: Speaker, prompts: Sequence[list[int]], device: torch.device) -> None:
        self._model = speaker.model
        ids, mask = left_padded(list(prompts), _FILLER)
        self._mask = mask.to(device)
        only_last = {"logits_to_keep": 1} if accepts(self._model, "logits_to_keep") else {}
        self._cache = DynamicCache(config=self._model.config)
        logits = self._logits(ids.to(device), self._mask, self._cache, **only_last)
        self.next = logits[:, -1].float()
        """(prompts, vocabulary): logits of the token behind each prompt."""

    def behind(self, tails: Sequence[Sequence[int]]) -> torch.Tensor:
        """(prompts, longest tail, vocabulary): logits of the token behind each token of a tail, one for each prompt.

        The prompts are left as they are, for other tails. What stands behind the end of a shorter tail means nothing.
        """
        width = max(map(len, tails))
        ids = torch.full((len(tails), width), _FILLER)
        for number, tail in enumerate(tails):
            ids[number, : len(tail)] = torch.tensor(tail)
        ids = ids.to(self._mask.device)
        mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
        # A cache is written to, and one with a sliding window cannot be cut back.
        return self._logits(ids, mask, copy.deepcopy(self._cache)).float()

    def _logits(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, **rest: Any
    ) -> torch.Tensor:
        """As transformers' `generate` calls a model; one without `position_ids` takes them from the mask."""
        if accepts(self._model, "position_ids"):
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            rest["position_ids"] = positions[:, -ids.shape[1] :]
        rest["cache" if accepts(self._model, "cache") else "past_key_values"] = cache  # by its newer name
        logits: torch.Tensor = self._model(input_ids=ids, attention_mask=mask, use_cache=True, **rest).logits
        return logits
