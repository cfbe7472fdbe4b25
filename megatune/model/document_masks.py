"""Attention masks of packed rows, for models that make none from positions that begin again.

Most models of transformers do (`masking_utils.find_packed_sequence_indices`). Some, GPT-OSS and OPT among them, do not
hand their positions on to where masks are made, but take a mask of four dimensions as it is, or one for each kind of
layer.
"""

import torch
from transformers import PreTrainedConfig

_TAKEN_BY = frozenset({"afmoe", "biogpt", "falcon", "gpt_oss", "mpt", "opt", "xglm"})
"""Models whose documents such masks keep apart: attention is all that looks back in them. BLOOM reads its biases off a
mask of two dimensions. Each is trained in tests/evaluate/test_reach_check.py; falcon up to transformers 5.23."""
_FULL, _SLIDING = "full_attention", "sliding_attention"
_ADDITIVE = ("sdpa", "eager")
"""Implementations of attention that add a mask to their scores; others tell documents apart by positions."""


class DocumentMasks:
    """Whether a model is given its masks. It is not, until a check finds that its packed documents meet."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config = config.get_text_config()
        self.are_given = False

    @property
    def can_be_given(self) -> bool:
        return self._config.model_type in _TAKEN_BY and self._config._attn_implementation in _ADDITIVE

    def of(self, position_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | dict[str, torch.Tensor]:
        """What the model takes as `attention_mask` for positions (batch, seq) that begin at 0 in each document.

        Of (batch, 1, seq, seq), to be added to scores: 0 where a token sees another, else the lowest number of
        `dtype`; one for each kind of layer where there are kinds.
        """
        documents = (position_ids == 0).cumsum(dim=1)
        places = torch.arange(position_ids.shape[1], device=position_ids.device)
        distance = places[:, None] - places
        seen = (documents[:, :, None] == documents[:, None, :]) & (distance >= 0)
        full = _additive(seen, dtype)
        kinds = getattr(self._config, "layer_types", None)
        if kinds is None:
            return full
        if _SLIDING not in kinds:
            return {_FULL: full}
        return {_FULL: full, _SLIDING: _additive(seen & (distance < self._config.sliding_window), dtype)}


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
