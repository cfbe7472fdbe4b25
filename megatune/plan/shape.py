"""The numbers of a model that layouts depend on, read from its config.json: no torch, no weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatune.errors import ModelError

# What each number is called in config.json, newest spelling first. Source: the configuration
# classes of transformers 5.23 (attribute_map included) for the families of families.py.
_SPELLINGS: dict[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd"),
    "num_heads": ("num_attention_heads", "n_head", "num_heads"),
    "num_kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_size": ("head_dim",),
    "vocab_size": ("vocab_size",),
    "max_positions": ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"),
}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Counts and sizes (in elements) of one causal language model."""

    model_type: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    """Key-value heads; equal to `num_heads` without grouped-query attention."""
    head_size: int
    vocab_size: int
    max_positions: int | None
    """Longest sequence the positions were made for; None when the config does not say (ALiBi)."""
    trained_dtype: str | None
    """dtype the weights were published in, as config.json names it (`bfloat16`), None if unknown."""

    @property
    def attention_width(self) -> int:
        """Heads times head size: what the score and value products work on."""
        return self.num_heads * self.head_size


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json describes. Raises ModelError naming what is missing."""
    text = config.get("text_config") or config
    found = {name: _first(text, spellings) for name, spellings in _SPELLINGS.items()}
    missing = [name for name in ("num_layers", "hidden_size", "num_heads", "vocab_size") if not found[name]]
    if missing or "model_type" not in config:
        raise ModelError(
            f"config.json does not describe a causal language model megatune knows how to count: no "
            f"{', '.join(missing or ['model_type'])} in it. Keys found: {', '.join(sorted(config))}."
        )
    heads = int(found["num_heads"])
    return ModelShape(
        model_type=str(text.get("model_type", config["model_type"])),
        num_layers=int(found["num_layers"]),
        hidden_size=int(found["hidden_size"]),
        num_heads=heads,
        num_kv_heads=_num_kv_heads(text, found["num_kv_heads"], heads),
        head_size=int(found["head_size"] or found["hidden_size"] // heads),
        vocab_size=int(found["vocab_size"]),
        max_positions=int(found["max_positions"]) if found["max_positions"] else None,
        trained_dtype=config.get("dtype") or config.get("torch_dtype"),
    )


def read_shape(folder: Path) -> ModelShape:
    """The shape of the model in `folder`, which needs to hold no more than config.json."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no config.json, so it is not a Hugging Face model folder.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ModelError(f"{path} is not JSON: {error}.") from error
    return shape_from_config(config)


def _first(config: Mapping[str, Any], spellings: tuple[str, ...]) -> Any:
    return next((config[name] for name in spellings if config.get(name) is not None), None)


def _num_kv_heads(config: Mapping[str, Any], stated: Any, heads: int) -> int:
    if config.get("model_type") == "falcon":
        if config.get("new_decoder_architecture"):
            return int(stated or heads)
        return 1 if config.get("multi_query", True) else heads
    return int(stated or heads)
