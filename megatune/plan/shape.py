"""The numbers of a model that layouts depend on, read from its config.json: no torch, no weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatune.errors import ModelError
from megatune.plan.config_values import SPELLINGS, checked, model_error, read_number
from megatune.plan.model_types import MODEL_TYPES
from megatune.plan.shards import split_parts

_WITHOUT_HEADS = frozenset({"mamba", "falcon_mamba", "rwkv"})
"""Types without attention: one head, which no rank can share."""


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

    @property
    def heads_of_group(self) -> int:
        """Query heads that share a key-value head."""
        return self.num_heads // self.num_kv_heads

    def local_heads(self, tensor_parallel: int, rank: int = 0) -> tuple[int, int]:
        """Query and key-value heads of one tensor-parallel rank; the first one has the most."""
        heads = split_parts(self.num_kv_heads, self.heads_of_group, tensor_parallel)[rank]
        return heads, -(-heads // self.heads_of_group)


def _num_listed(text: Mapping[str, Any]) -> int | None:
    """Layers of a config.json that lists their kinds and does not count them, as Nemotron-H's."""
    kinds = text.get("layers_block_type")
    return len(kinds) if isinstance(kinds, list) else None


def shape_from_config(config: Mapping[str, Any], source: str = "config.json") -> ModelShape:
    """The shape that a config.json describes; `source` is its path, for messages.

    Raises ModelError naming what is missing, and every value that cannot be.
    """
    text = checked(config, source)
    found: dict[str, Any] = {name: read_number(text, name) for name in SPELLINGS}
    found["num_layers"] = found["num_layers"] or _num_listed(text)
    if text.get("model_type") in _WITHOUT_HEADS:
        found["num_heads"] = 1
    missing = [name for name in ("num_layers", "hidden_size", "num_heads", "vocab_size") if not found[name]]
    if missing or "model_type" not in config:
        raise ModelError(
            f"{source} does not describe a causal language model megatune knows how to count: no "
            f"{', '.join(missing or ['model_type'])} in it. Keys found: {', '.join(sorted(config))}."
        )
    heads = int(found["num_heads"])
    shape = ModelShape(
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
    problems = list(_odd_heads(shape, divides_hidden=not found["head_size"]))
    if problems and shape.model_type in MODEL_TYPES:
        raise model_error(source, problems)
    return shape


def _odd_heads(shape: ModelShape, *, divides_hidden: bool) -> Iterator[str]:
    """Heads that do not come out whole; divides_hidden: a head's size is a share of hidden_size."""
    if divides_hidden and shape.hidden_size % shape.num_heads:
        yield (
            f"hidden_size = {shape.hidden_size} is no multiple of the {shape.num_heads} attention heads, and no "
            "head_dim is given; it must be one."
        )
    if shape.num_heads % shape.num_kv_heads:
        yield (
            f"{shape.num_heads} attention heads are no multiple of the {shape.num_kv_heads} key-value heads; they "
            "must be one."
        )


def _num_kv_heads(config: Mapping[str, Any], stated: Any, heads: int) -> int:
    if config.get("model_type") == "falcon":
        if config.get("new_decoder_architecture"):
            return int(stated or heads)
        return 1 if config.get("multi_query", True) else heads
    return int(stated or heads)
