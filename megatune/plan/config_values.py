"""What a config.json may hold under the keys that plans read, and what its absent keys mean."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatune.errors import ModelError
from megatune.plan.model_types import MODEL_TYPES

# What each number is called in config.json, newest spelling first. Source: the configuration
# classes of transformers 5.23 (attribute_map included) for the families of families.py.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_heads": ("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads"),
    "num_kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_size": ("head_dim",),
    "vocab_size": ("vocab_size",),
    "num_experts": ("num_local_experts", "num_experts"),
    "experts_per_token": ("num_experts_per_tok",),
    "max_positions": ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len"),
}
_NEVER_NULL = ("num_layers", "hidden_size", "num_heads", "vocab_size", "max_positions")


_COUNTS = ("moe_intermediate_size", "shared_expert_intermediate_size", "word_embed_proj_dim", "rotary_dim",
           "pretraining_tp", "num_ln_in_parallel_attn")  # fmt: skip
_FLAGS = (
    "tie_word_embeddings", "attention_bias", "attention_out_bias", "mlp_bias", "qkv_bias", "use_bias", "use_qkv_bias",
    "qk_layernorm", "use_qk_norm", "enable_bias", "bias", "alibi",
    "layer_norm_elementwise_affine", "do_layer_norm_before", "_remove_final_layer_norm", "new_decoder_architecture",
    "multi_query", "parallel_attn", "use_parallel_residual", "slow_but_exact",
)  # fmt: skip
_SHARES = ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "dropout", "resid_dropout",
           "embed_dropout", "hidden_dropout",
           "residual_dropout")  # fmt: skip


def checked(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The part of a config.json that describes the language model, with the values of its type for absent keys.

    source: how messages call the file. Raises ModelError with every value that cannot be.
    """
    text = config.get("text_config") or config
    if not isinstance(text, Mapping):
        raise ModelError(
            f"{source}: text_config = {json.dumps(text)}; it must be an object with the model's keys."
        )
    kind = text.get("model_type", config.get("model_type"))
    problems = list(_bad_values(text, kind))
    if problems:
        raise model_error(source, problems)
    known = MODEL_TYPES.get(str(kind))
    return {**text, **_absent(text, known.absent if known else {})}


def read_number(text: Mapping[str, Any], name: str) -> int | None:
    """The number called `name` in SPELLINGS, of a part that `checked` has returned; None where it is not given."""
    key = _read_key(text, name)
    return None if key is None else text[key]


def model_error(source: str, problems: Sequence[str]) -> ModelError:
    """The error that tells all `problems` of a config.json."""
    if len(problems) == 1:
        return ModelError(f"{source}: {problems[0]}")
    return ModelError(f"{source} has {len(problems)} problems:" + "".join(f"\n  - {one}" for one in problems))


def _bad_values(text: Mapping[str, Any], kind: object) -> Iterator[str]:
    if kind is not None and not isinstance(kind, str):
        yield f'model_type = {json.dumps(kind)}; it must be a name, as "llama".'
        return
    # Of a type without a row only the shape is read: what else its keys mean is its own.
    known = MODEL_TYPES.get(str(kind))
    counts = {key: name in _NEVER_NULL for name in SPELLINGS if (key := _read_key(text, name)) is not None}
    if known:
        counts |= dict.fromkeys((*_COUNTS, known.ffn_key), False)
    for key, never_null in counts.items():
        value = text.get(key)
        is_count = type(value) is int and value > 0  # not bool, which Python counts among the whole numbers
        if key in text and not is_count and (value is not None or (never_null and known)):
            yield f"{key} = {json.dumps(value)}; it must be a whole number from 1."
    for key in _FLAGS if known else ():
        if not isinstance(text.get(key), bool | None):
            yield f"{key} = {json.dumps(text[key])}; it must be true or false."
    for key in _SHARES if known else ():
        value = text.get(key)
        if value is not None and not (type(value) in (int, float) and 0 <= value <= 1):
            yield f"{key} = {json.dumps(value)}; it must be a number from 0 to 1."


def _read_key(text: Mapping[str, Any], name: str) -> str | None:
    """Under which of its spellings a number is read; None where it has none of them."""
    given = [key for key in SPELLINGS[name] if key in text]
    return next((key for key in given if text[key] is not None), given[0] if given else None)


def _absent(text: Mapping[str, Any], defaults: Mapping[str, int]) -> dict[str, int]:
    """The defaults of what `text` gives under no spelling."""
    spellings = {key: keys for keys in SPELLINGS.values() for key in keys}
    return {
        key: value
        for key, value in defaults.items()
        if not any(spelling in text for spelling in spellings.get(key, (key,)))
    }
