"""Two-layer models of every supported family, with perturbed weights so that a wrong shard shows."""

from pathlib import Path
from typing import Any

_HEADS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {**_HEADS, "intermediate_size": 96, "num_key_value_heads": 4, "vocab_size": 101}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SLIDING_AND_FULL = ["sliding_attention", "full_attention"]

_EXPERTS = {**_LLAMA, "num_attention_heads": 8, "num_experts_per_tok": 2, **_TOKENS}
EXPERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {**_EXPERTS, "num_local_experts": 4}),
    "qwen3_moe": ("qwen3_moe", {**_EXPERTS, "num_local_experts": 4, "moe_intermediate_size": 48, "head_dim": 24}),
    "qwen2_moe": ("qwen2_moe", {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 48,
                                "shared_expert_intermediate_size": 40}),
    "olmoe": ("olmoe", {**_EXPERTS, "num_experts": 4}),
    "granitemoe": ("granitemoe", {**_EXPERTS, "num_local_experts": 4}),
    "gpt_oss": ("gpt_oss", {**_EXPERTS, "num_local_experts": 4, "head_dim": 8, "layer_types": _SLIDING_AND_FULL}),
}  # fmt: skip

# name -> (model_type, config). Dropout is off: its masks differ between layouts by design.
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 101, "n_positions": 64,
                      "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt2-5-heads": ("gpt2", {"n_embd": 80, "n_layer": 2, "n_head": 5, "vocab_size": 101, "n_positions": 64,
                              "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt_neo": ("gpt_neo", {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 101,
                            "attention_types": [[["global", "local"], 1]], "window_size": 8,
                            "max_position_embeddings": 64, "embed_dropout": 0.0, "resid_dropout": 0.0,
                            "attention_dropout": 0.0}),
    "gptj": ("gptj", {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "vocab_size": 101,
                      "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt_neox": ("gpt_neox", {**_HEADS, "intermediate_size": 96, "vocab_size": 101, "hidden_dropout": 0.0,
                              "attention_dropout": 0.0, "max_position_embeddings": 64}),
    "opt": ("opt", {**_HEADS, "ffn_dim": 96, "word_embed_proj_dim": 32, "vocab_size": 101, "dropout": 0.0,
                    "attention_dropout": 0.0, "max_position_embeddings": 64}),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 101, "hidden_dropout": 0.0,
                        "attention_dropout": 0.0}),
    "falcon": ("falcon", {**_HEADS, "num_attention_heads": 8, "num_kv_heads": 4, "new_decoder_architecture": True,
                          "vocab_size": 101, "hidden_dropout": 0.0, "attention_dropout": 0.0, "alibi": False,
                          "bias": True}),
    "falcon-rw": ("falcon", {**_HEADS, "multi_query": False, "new_decoder_architecture": False, "vocab_size": 101,
                             "parallel_attn": False, "hidden_dropout": 0.0, "attention_dropout": 0.0,
                             "alibi": False, "bias": True}),
    "llama": ("llama", {**_LLAMA, "num_attention_heads": 8, "tie_word_embeddings": False}),
    "llama-tied-9-heads": ("llama", {**_LLAMA, "hidden_size": 80, "num_attention_heads": 10,
                                     "num_key_value_heads": 5, "intermediate_size": 97,
                                     "tie_word_embeddings": True}),
    "mistral": ("mistral", {**_LLAMA, "sliding_window": None}),
    "qwen2": ("qwen2", {**_LLAMA, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**_LLAMA, "head_dim": 24}),
    "phi": ("phi", {**_LLAMA, "partial_rotary_factor": 0.5, "qk_layernorm": True}),
    "phi3": ("phi3", {**_LLAMA, "num_attention_heads": 8, "pad_token_id": 0}),
    "gemma": ("gemma", {**_LLAMA, "head_dim": 16, "num_key_value_heads": 1, "pad_token_id": 0}),
    "gemma2": ("gemma2", {**_LLAMA, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8,
                          "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, **_TOKENS}),
    "gemma3": ("gemma3_text", {**_LLAMA, "num_attention_heads": 8, "head_dim": 24, "query_pre_attn_scalar": 24,
                               "sliding_window": 8, "layer_types": _SLIDING_AND_FULL, **_TOKENS}),
    "granite": ("granite", {**_LLAMA, "embedding_multiplier": 2.0, "residual_multiplier": 0.7,
                            "attention_multiplier": 0.2, "logits_scaling": 3.0, "attention_bias": True, **_TOKENS}),
    "smollm3": ("smollm3", {**_LLAMA, "num_attention_heads": 8, "no_rope_layers": [1, 0], **_TOKENS}),
    "ministral": ("ministral", {**_LLAMA, "head_dim": 24, "sliding_window": 8, "layer_types": _SLIDING_AND_FULL,
                                **_TOKENS}),
    "ministral3": ("ministral3", {**_LLAMA, "head_dim": 24, **_TOKENS}),
    "cohere": ("cohere", {**_LLAMA, "logit_scale": 0.5, **_TOKENS}),
    "cohere2": ("cohere2", {**_LLAMA, "num_attention_heads": 8, "logit_scale": 0.5, "sliding_window": 8,
                            "layer_types": _SLIDING_AND_FULL, **_TOKENS}),
    "glm": ("glm", {**_LLAMA, "num_attention_heads": 8, "head_dim": 8, **_TOKENS}),
    "glm4": ("glm4", {**_LLAMA, "num_attention_heads": 8, "head_dim": 8, "intermediate_size": 97, **_TOKENS}),
    "starcoder2": ("starcoder2", {**_LLAMA, "num_attention_heads": 8, **_TOKENS}),
    "stablelm": ("stablelm", {**_LLAMA, "num_attention_heads": 8, "use_qkv_bias": True, **_TOKENS}),
    "stablelm-parallel": ("stablelm", {**_LLAMA, "use_parallel_residual": True, **_TOKENS}),
    "olmo": ("olmo", {**_LLAMA, "clip_qkv": 1.0, **_TOKENS}),
    "olmo2": ("olmo2", {**_LLAMA, "num_attention_heads": 8, **_TOKENS}),
    "olmo3": ("olmo3", {**_LLAMA, "sliding_window": 8, "layer_types": _SLIDING_AND_FULL, **_TOKENS}),
    "seed_oss": ("seed_oss", {**_LLAMA, "num_attention_heads": 8, "head_dim": 24, "attention_dropout": 0.0,
                              "residual_dropout": 0.0, **_TOKENS}),
    "exaone4": ("exaone4", {**_LLAMA, "sliding_window": 8, "layer_types": _SLIDING_AND_FULL, **_TOKENS}),
    "ernie4_5": ("ernie4_5", {**_LLAMA, "head_dim": 24, "use_bias": True, **_TOKENS}),
    **EXPERTS,
}  # fmt: skip
# Further models whose packed documents only given masks keep apart.
MASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": ("afmoe", {**_EXPERTS, "num_experts": 4, "num_dense_layers": 1, "moe_intermediate_size": 48,
                        "head_dim": 8, "sliding_window": 8, "layer_types": _SLIDING_AND_FULL}),
    "biogpt": ("biogpt", {**_HEADS, "intermediate_size": 96, "vocab_size": 101, "hidden_dropout_prob": 0.0,
                          "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 64, **_TOKENS}),
    "mpt": ("mpt", {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 101, "max_seq_len": 64}),
    "xglm": ("xglm", {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96, "vocab_size": 101,
                      "dropout": 0.0, "attention_dropout": 0.0, "max_position_embeddings": 64, **_TOKENS}),
}  # fmt: skip
VOCABULARY = 101


def write_tiny_model(name: str, folder: Path, **changes: Any) -> Path:
    """A Hugging Face folder of the tiny model `name` below `folder`; written once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = folder / "-".join([name, *(f"{key}={value}" for key, value in sorted(changes.items()))])
    if path.is_dir():
        return path
    model_type, config = {**TINY, **MASKED}[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**config, **changes}))
    perturb(model)
    model.save_pretrained(path)
    return path


def perturb(model: Any) -> None:
    """Change every weight of `model`, also those that begin as ones and zeros."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(2).add_(noise, alpha=0.02)


_IMAGES_TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "head_dim": 24, "intermediate_size": 96, "vocab_size": VOCABULARY, "sliding_window": 8,
                "query_pre_attn_scalar": 24, **_TOKENS}  # fmt: skip
# As many layers as the language model: which blocks are meant cannot be told from their number.
_IMAGES_TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
                 "image_size": 28, "patch_size": 14}  # fmt: skip


def write_tiny_model_with_images(folder: Path, **changes: Any) -> Path:
    """A Gemma 3 that reads images too, below `folder`; `changes` are those of the language model. Written once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = folder / "-".join(["gemma3-with-images", *(f"{key}={value}" for key, value in changes.items())])
    if path.is_dir():
        return path
    config = AutoConfig.for_model(
        "gemma3",
        text_config={**_IMAGES_TEXT, **changes},
        vision_config=_IMAGES_TOWER,
        image_token_index=5,
        mm_tokens_per_image=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path
