"""What a config.json may hold under the keys that plans read, and what its absent keys mean."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatune.errors import ModelError

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


def _llama_like(
    vocab: int, hidden: int, ffn: int, layers: int, heads: int, positions: int, **more: int
) -> Any:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
        **more,
    }


# What a key that is absent means, by model type; what is not here either is derived from the others (key-value heads
# as many as heads, a head's size the share of hidden_size, four times hidden_size for the feed-forward layer).
# Source: the configuration classes of transformers 5.23, one a type; tests/plan/test_config_values.py compares.
DEFAULTS: dict[str, Mapping[str, int]] = {
    "llama": _llama_like(32000, 4096, 11008, 32, 32, 2048),
    "mistral": _llama_like(32000, 4096, 14336, 32, 32, 131072, num_key_value_heads=8),
    "ministral": _llama_like(32000, 4096, 14336, 32, 32, 131072, num_key_value_heads=8),
    "ministral3": _llama_like(131072, 4096, 14336, 34, 32, 262144, num_key_value_heads=8, head_dim=128),
    "qwen2": _llama_like(151936, 4096, 22016, 32, 32, 32768, num_key_value_heads=32),
    "qwen3": _llama_like(151936, 4096, 22016, 32, 32, 32768, num_key_value_heads=32, head_dim=128),
    "gemma": _llama_like(256000, 3072, 24576, 28, 16, 8192, num_key_value_heads=16, head_dim=256),
    "gemma2": _llama_like(256000, 2304, 9216, 26, 8, 8192, num_key_value_heads=4, head_dim=256),
    "gemma3_text": _llama_like(262208, 2304, 9216, 26, 8, 131072, num_key_value_heads=4, head_dim=256),
    "granite": _llama_like(32000, 4096, 11008, 32, 32, 2048),
    "smollm3": _llama_like(128256, 2048, 11008, 36, 16, 32768, num_key_value_heads=4),
    "cohere": _llama_like(256000, 8192, 22528, 40, 64, 8192),
    "cohere2": _llama_like(256000, 8192, 22528, 40, 64, 8192),
    "glm": _llama_like(151552, 4096, 13696, 40, 32, 131072, num_key_value_heads=2, head_dim=128),
    "glm4": _llama_like(151552, 4096, 13696, 40, 32, 131072, num_key_value_heads=2, head_dim=128),
    "starcoder2": _llama_like(49152, 3072, 12288, 30, 24, 4096, num_key_value_heads=2),
    "stablelm": _llama_like(50304, 2560, 6912, 32, 32, 4096, num_key_value_heads=32),
    "olmo": _llama_like(50304, 4096, 11008, 32, 32, 2048),
    "olmo2": _llama_like(50304, 4096, 11008, 32, 32, 2048),
    "olmo3": _llama_like(50304, 4096, 11008, 32, 32, 2048),
    "seed_oss": _llama_like(155136, 4096, 27648, 64, 80, 524288, num_key_value_heads=8, head_dim=128),
    "exaone4": _llama_like(102400, 4096, 16384, 32, 32, 2048, num_key_value_heads=32),
    "mixtral": _llama_like(32000, 4096, 14336, 32, 32, 131072, num_key_value_heads=8, num_local_experts=8,
                           num_experts_per_tok=2),
    "qwen3_moe": _llama_like(151936, 2048, 6144, 24, 32, 32768, num_key_value_heads=4, moe_intermediate_size=768,
                             num_local_experts=128, num_experts_per_tok=8),
    "qwen2_moe": _llama_like(151936, 2048, 5632, 24, 16, 32768, num_key_value_heads=16, moe_intermediate_size=1408,
                             shared_expert_intermediate_size=5632, num_experts=60, num_experts_per_tok=4),
    "olmoe": _llama_like(50304, 2048, 2048, 16, 16, 4096, num_experts=64, num_experts_per_tok=8),
    "granitemoe": _llama_like(32000, 4096, 11008, 32, 32, 2048, num_local_experts=8, num_experts_per_tok=2),
    "gpt_oss": _llama_like(201088, 2880, 2880, 36, 64, 131072, num_key_value_heads=8, head_dim=64,
                           num_local_experts=128, num_experts_per_tok=4),
    "ernie4_5": _llama_like(103424, 1024, 3072, 18, 16, 131072, num_key_value_heads=2, head_dim=128),
    "phi": _llama_like(51200, 2048, 8192, 24, 32, 2048),
    "phi3": _llama_like(32064, 3072, 8192, 32, 32, 4096),
    "gpt_neox": _llama_like(50432, 6144, 24576, 44, 64, 2048),
    "opt": {"vocab_size": 50272, "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "max_position_embeddings": 2048},
    "gptj": {"vocab_size": 50400, "n_embd": 4096, "n_layer": 28, "n_head": 16, "n_positions": 2048,
             "rotary_dim": 64},
    "gpt_neo": {"vocab_size": 50257, "hidden_size": 2048, "num_layers": 24, "num_heads": 16,
                "max_position_embeddings": 2048},
    "falcon": {"vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
               "max_position_embeddings": 2048},
    "bloom": {"vocab_size": 250880, "hidden_size": 64, "n_layer": 2, "n_head": 8},
    "gpt2": {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
}  # fmt: skip

_FFN_KEYS = {"opt": "ffn_dim", "gptj": "n_inner", "gpt2": "n_inner", "falcon": "ffn_hidden_size"}
"""Where it is not intermediate_size."""
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
    return {**text, **_absent(text, DEFAULTS.get(str(kind), {}))}


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
    is_known = kind in DEFAULTS
    counts = {key: name in _NEVER_NULL for name in SPELLINGS if (key := _read_key(text, name)) is not None}
    if is_known:
        counts |= dict.fromkeys((*_COUNTS, _FFN_KEYS.get(str(kind), "intermediate_size")), False)
    for key, never_null in counts.items():
        value = text.get(key)
        is_count = type(value) is int and value > 0  # not bool, which Python counts among the whole numbers
        if key in text and not is_count and (value is not None or (never_null and is_known)):
            yield f"{key} = {json.dumps(value)}; it must be a whole number from 1."
    for key in _FLAGS if is_known else ():
        if not isinstance(text.get(key), bool | None):
            yield f"{key} = {json.dumps(text[key])}; it must be true or false."
    for key in _SHARES if is_known else ():
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
