"""Two-layer models of any causal type of transformers, from general sizes: what megatune has no table for."""

from pathlib import Path
from typing import Any

from tiny_models import VOCABULARY, perturb

_SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 96, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "sliding_window": 8,
    "attention_window": 8, "lru_width": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_EXPERTS = {
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 48, "shared_expert_intermediate_size": 40, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1,
}  # fmt: skip
_LATENT_ATTENTION = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
                     "v_head_dim": 16}  # fmt: skip
_STATES = {
    "state_size": 8, "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_expand": 2, "n_groups": 2,
    "num_heads": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
    "expert_layer_offset": 1,
}  # fmt: skip
# Masks of dropout and noise at the router differ between layouts by design.
_NO_NOISE = dict.fromkeys(
    ("attention_dropout", "hidden_dropout", "residual_dropout", "dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
     "hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout", "router_jitter_noise",
     "input_jitter_noise"), 0.0
)  # fmt: skip
_GENERAL = {**_SIZES, **_EXPERTS, **_LATENT_ATTENTION, **_STATES, **_NO_NOISE}

_LATENT = {"head_dim": 8, "num_key_value_heads": 4}
_SPARSE = {**_LATENT, "index_head_dim": 16, "index_n_heads": 2, "index_topk": 8}
_LINEAR_AND_FULL = {"layer_types": ["linear_attention", "full_attention"]}
_CONVOLUTION_AND_FULL = {"layer_types": ["conv", "full_attention"]}
# What a type wants beside or instead of the general sizes.
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "sarvam_mla", "youtu"),
                    _LATENT),
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), _SPARSE),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"), _LINEAR_AND_FULL),
    "codegen": {"rotary_dim": 8},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_groups": 1},
    "gemma3n_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 1, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.0] * 4, "laurel_rank": 4,
    },
    "gemma4_text": {
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "global_head_dim": 16,
        "num_global_key_value_heads": 2, "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "lfm2": _CONVOLUTION_AND_FULL,
    "lfm2_moe": {**_CONVOLUTION_AND_FULL, "num_dense_layers": 1},
    "longcat_flash": {**_LATENT, "num_layers": 1},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 16, "moe_shared_expert_intermediate_size": 48,
                   "ssm_state_size": 16},
    "zamba2": {"layer_types": ["mamba", "hybrid"], "hybrid_layer_ids": [1], "mamba_ngroups": 1, "n_mamba_heads": 8,
               "mamba_headdim": 16, "num_mem_blocks": 1},
    "xlstm": {"mode": "train", "autocast_kernel_dtype": "float32", "chunk_size": 8},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
_TOWER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48,
          "image_size": 28, "patch_size": 14}  # fmt: skip
MOST_PARAMETERS = 3_000_000
"""A type whose configuration the sizes above do not reach stays too large to be tried."""


def _sizes_of(model_type: str) -> dict[str, Any]:
    """The keys to set in the configuration of `model_type`; of one that reads images too, those of its parts."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(model_type)
    known, text = default.to_dict(), default.get_text_config()
    if text is not default:
        parts: dict[str, Any] = {"text_config": {"model_type": text.model_type, **_sizes_of(text.model_type)}}
        tower = known.get("vision_config")
        if tower:
            parts["vision_config"] = tower | {key: value for key, value in _TOWER.items() if key in tower}
        return parts
    sizes = {key: value for key, value in _GENERAL.items() if key in known or hasattr(default, key)}
    derived = {key for key in sizes if getattr(getattr(type(default), key, None), "fset", default) is None}
    return {**{key: value for key, value in sizes.items() if key not in derived}, **_OWN.get(model_type, {})}


def write_other_model(model_type: str, folder: Path, vocab_size: int = VOCABULARY) -> Path:
    """A Hugging Face folder of a tiny `model_type` below `folder`; written once.

    Raises what transformers raises for sizes that the type does not take, ValueError for one that stays large.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = folder / model_type
    if path.is_dir():
        return path
    config = AutoConfig.for_model(model_type, **_sizes_of(model_type))
    for part in {id(config): config, id(config.get_text_config()): config.get_text_config()}.values():
        for key in ("vocab_size", "vocab_size_per_layer_input"):
            if hasattr(part, key):
                setattr(part, key, vocab_size)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count:,} parameters")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float()
    perturb(model)
    model.save_pretrained(path)
    return path
