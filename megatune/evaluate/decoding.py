"""How answers are written, token by token."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Greedy unless it says otherwise."""

    max_new_tokens: int = 64
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    """Sample among so many likeliest tokens; 0 is all."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability."""
    seed: int = 42

    def config(self, *, stop_ids: list[int], pad_id: int) -> GenerationConfig:
        """The same for transformers, with nothing left to the defaults of a model folder."""
        sampling: dict[str, Any] = (
            {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
            if self.do_sample
            else {}
        )
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            do_sample=self.do_sample,
            use_cache=True,
            eos_token_id=stop_ids,
            pad_token_id=pad_id,
            **sampling,
        )


GREEDY = Decoding()


def left_padded(prompts: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), (batch, longest) each: prompts end together, so that every row goes on at the same place."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def until_stop(ids: list[int], stop_ids: list[int]) -> list[int]:
    """What comes before the first token that ends an answer."""
    return next((ids[:at] for at, token in enumerate(ids) if token in stop_ids), ids)
