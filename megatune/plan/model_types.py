"""What is known of each model type that megatune counts, beside its blocks and their cut: one row a type.

A new family is a row here, a row in blocks.py (the weights of a block) and, if it can be cut, one in
families.py. Sources: the configuration and modeling files of transformers 5.23, one of each a type;
tests/plan compares every row with them (test_config_values.py, test_weights.py, test_activations.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A norm, and what autograd keeps of each element that goes through it: its input, steps between, its output."""

    fp32_bytes: int
    copies: int
    """Tensors in the training precision."""
    has_bias: bool = False
    has_weight: bool = True

    def kept_bytes(self, element_bytes: int) -> int:
        """Bytes an element, where the training precision takes `element_bytes`."""
        return self.fp32_bytes + self.copies * element_bytes


_LAYER_NORM = Norm(fp32_bytes=0, copies=2, has_bias=True)
_RMS = Norm(fp32_bytes=4, copies=2)
# Multiplied by its weight before it goes back to the training precision.
_RMS_FP32_SCALE = Norm(fp32_bytes=8, copies=1)
# A layer norm without bias, written out in Python: the input less its mean is kept twice.
_COHERE_NORM = Norm(fp32_bytes=12, copies=1)
# A layer norm in fp32 that has no weights at all.
_OLMO_NORM = Norm(fp32_bytes=4, copies=1, has_weight=False)


@dataclass(frozen=True, kw_only=True)
class Experts:
    """What autograd keeps of experts beyond their inputs and outputs; of types that have some."""

    feature_copies: int = 4
    """Tensors as wide as an expert's features: gate, its activation, up, their product."""
    softmax_over_chosen: bool = False
    """The softmax is taken over a token's experts once they are chosen, not over all before."""
    choice_bytes: int | None = None
    """Of each chosen expert's weight, after the softmax; None: as many as the training precision has."""
    token_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelType:
    """The facts of one model_type."""

    absent: Mapping[str, int]
    """What a key means that its config.json leaves out. What is not here either is derived from the others:
    key-value heads as many as heads, a head's size the share of hidden_size, a feed-forward layer four times it."""
    ffn_key: str = "intermediate_size"
    activation: str = "gelu"
    """Where config.json names none."""
    residual_dropout: float = 0.0
    """Where config.json says nothing of it."""
    score_dropout: float | None = 0.0
    """The same, of attention scores; None: its class applies none there, whatever config.json says."""

    ties_head: bool = False
    """The head is the embedding unless config.json says otherwise."""
    head_has_bias: bool = False
    position_offset: int | None = None
    """Rows of the table of positions before the first one; None without such a table."""
    norm: Norm = _RMS
    norms_outside: tuple[str, ...] = ("final_norm",)

    norms_outputs: bool = False
    """Half the norms are of a layer's output, which is added to the residual stream: nobody keeps theirs."""
    shares_norm_input: bool = False
    """Both norms of a block read the same input, where attention and feed-forward layer stand side by side."""
    has_sdpa: bool = True
    """False: its class in transformers has no sdpa kernel, eager is all it has."""
    softmax_in_fp32: bool = True
    scores_in_fp32: bool = False
    """Query and key are copied to fp32 before the scores are made."""
    repeats_kv_heads: bool = False
    """For each query head, whatever the kernel."""
    makes_mask: bool = False
    """In each block, for sdpa."""
    sink_scores: bool = False
    """One more score a head, and where the largest is."""
    copies_output: bool = False
    """Angles are put into parts of the heads, or sliced out of a fused projection: output is copied once more."""
    keeps_fused_projection: bool = False
    """Query, key and value are views of it, so it lives on while the value does."""
    angle_bytes: int = 0
    """Of an angle's sine and cosine, where each block makes them anew."""
    has_angles: bool = True
    """Positions are rotations of query and key."""
    experts: Experts = Experts()


def _sizes(
    vocab: int, hidden: int, ffn: int, layers: int, heads: int, positions: int, **more: int
) -> dict[str, int]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
        **more,
    }


MODEL_TYPES: dict[str, ModelType] = {
    "llama": ModelType(absent=_sizes(32000, 4096, 11008, 32, 32, 2048)),
    "mistral": ModelType(absent=_sizes(32000, 4096, 14336, 32, 32, 131072, num_key_value_heads=8)),
    "ministral": ModelType(absent=_sizes(32000, 4096, 14336, 32, 32, 131072, num_key_value_heads=8)),
    "ministral3": ModelType(absent=_sizes(131072, 4096, 14336, 34, 32, 262144, num_key_value_heads=8, head_dim=128)),
    "qwen2": ModelType(absent=_sizes(151936, 4096, 22016, 32, 32, 32768, num_key_value_heads=32)),
    "qwen3": ModelType(absent=_sizes(151936, 4096, 22016, 32, 32, 32768, num_key_value_heads=32, head_dim=128)),
    "gemma": ModelType(
        absent=_sizes(256000, 3072, 24576, 28, 16, 8192, num_key_value_heads=16, head_dim=256),
        ties_head=True, norm=_RMS_FP32_SCALE,
    ),
    "gemma2": ModelType(
        absent=_sizes(256000, 2304, 9216, 26, 8, 8192, num_key_value_heads=4, head_dim=256),
        ties_head=True, norm=_RMS_FP32_SCALE, norms_outputs=True, has_sdpa=False,
    ),
    "gemma3_text": ModelType(
        absent=_sizes(262208, 2304, 9216, 26, 8, 131072, num_key_value_heads=4, head_dim=256),
        ties_head=True, norm=_RMS_FP32_SCALE, norms_outputs=True,
    ),
    "granite": ModelType(absent=_sizes(32000, 4096, 11008, 32, 32, 2048)),
    "smollm3": ModelType(absent=_sizes(128256, 2048, 11008, 36, 16, 32768, num_key_value_heads=4), ties_head=True),
    "cohere": ModelType(absent=_sizes(256000, 8192, 22528, 40, 64, 8192), ties_head=True, norm=_COHERE_NORM),
    "cohere2": ModelType(absent=_sizes(256000, 8192, 22528, 40, 64, 8192), ties_head=True, norm=_COHERE_NORM),
    "glm": ModelType(
        absent=_sizes(151552, 4096, 13696, 40, 32, 131072, num_key_value_heads=2, head_dim=128),
        copies_output=True, angle_bytes=4,
    ),
    "glm4": ModelType(
        absent=_sizes(151552, 4096, 13696, 40, 32, 131072, num_key_value_heads=2, head_dim=128),
        norms_outputs=True, copies_output=True, angle_bytes=4,
    ),
    "starcoder2": ModelType(
        absent=_sizes(49152, 3072, 12288, 30, 24, 4096, num_key_value_heads=2), ties_head=True, norm=_LAYER_NORM
    ),
    "stablelm": ModelType(
        absent=_sizes(50304, 2560, 6912, 32, 32, 4096, num_key_value_heads=32), norm=_LAYER_NORM, copies_output=True
    ),
    "olmo": ModelType(absent=_sizes(50304, 4096, 11008, 32, 32, 2048), norm=_OLMO_NORM),
    "olmo2": ModelType(absent=_sizes(50304, 4096, 11008, 32, 32, 2048), norm=_RMS_FP32_SCALE),
    "olmo3": ModelType(absent=_sizes(50304, 4096, 11008, 32, 32, 2048), norm=_RMS_FP32_SCALE),
    "seed_oss": ModelType(absent=_sizes(155136, 4096, 27648, 64, 80, 524288, num_key_value_heads=8, head_dim=128)),
    "exaone4": ModelType(absent=_sizes(102400, 4096, 16384, 32, 32, 2048, num_key_value_heads=32)),
    "ernie4_5": ModelType(
        absent=_sizes(103424, 1024, 3072, 18, 16, 131072, num_key_value_heads=2, head_dim=128),
        ties_head=True, angle_bytes=8,
    ),
    "mixtral": ModelType(
        absent=_sizes(32000, 4096, 14336, 32, 32, 131072, num_key_value_heads=8, num_local_experts=8,
                      num_experts_per_tok=2),
        experts=Experts(choice_bytes=8, token_bytes=4),  # made to sum to 1
    ),
    "qwen3_moe": ModelType(
        absent=_sizes(151936, 2048, 6144, 24, 32, 32768, num_key_value_heads=4, moe_intermediate_size=768,
                      num_local_experts=128, num_experts_per_tok=8),
    ),
    "qwen2_moe": ModelType(
        absent=_sizes(151936, 2048, 5632, 24, 16, 32768, num_key_value_heads=16, moe_intermediate_size=1408,
                      shared_expert_intermediate_size=5632, num_experts=60, num_experts_per_tok=4),
    ),
    "olmoe": ModelType(absent=_sizes(50304, 2048, 2048, 16, 16, 4096, num_experts=64, num_experts_per_tok=8)),
    "granitemoe": ModelType(
        absent=_sizes(32000, 4096, 11008, 32, 32, 2048, num_local_experts=8, num_experts_per_tok=2),
        experts=Experts(softmax_over_chosen=True),
    ),
    "gpt_oss": ModelType(
        absent=_sizes(201088, 2880, 2880, 36, 64, 131072, num_key_value_heads=8, head_dim=64,
                      num_local_experts=128, num_experts_per_tok=4),
        norm=_RMS_FP32_SCALE, has_sdpa=False, softmax_in_fp32=False, sink_scores=True,
        # Gate and up are clamped and the activation is written out; choices are kept with their experts for the biases.
        experts=Experts(feature_copies=7, softmax_over_chosen=True, choice_bytes=8),
    ),
    "phi": ModelType(
        absent=_sizes(51200, 2048, 8192, 24, 32, 2048),
        activation="gelu_new", head_has_bias=True, norm=_LAYER_NORM, copies_output=True,
    ),
    "phi3": ModelType(
        absent=_sizes(32064, 3072, 8192, 32, 32, 4096), copies_output=True, keeps_fused_projection=True
    ),
    "gpt_neox": ModelType(
        absent=_sizes(50432, 6144, 24576, 44, 64, 2048),
        norm=_LAYER_NORM, shares_norm_input=True, copies_output=True, keeps_fused_projection=True,
    ),
    "opt": ModelType(
        absent={"vocab_size": 50272, "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12,
                "num_attention_heads": 12, "max_position_embeddings": 2048},
        ffn_key="ffn_dim", activation="relu", residual_dropout=0.1, ties_head=True,
        position_offset=2,  # OPTLearnedPositionalEmbedding
        norm=_LAYER_NORM, has_angles=False,
    ),
    "gptj": ModelType(
        absent={"vocab_size": 50400, "n_embd": 4096, "n_layer": 28, "n_head": 16, "n_positions": 2048,
                "rotary_dim": 64},
        ffn_key="n_inner", activation="gelu_new", head_has_bias=True, norm=_LAYER_NORM,
        has_sdpa=False, scores_in_fp32=True, angle_bytes=8,
    ),
    "gpt_neo": ModelType(
        absent={"vocab_size": 50257, "hidden_size": 2048, "num_layers": 24, "num_heads": 16,
                "max_position_embeddings": 2048},
        activation="gelu_new", ties_head=True, position_offset=0, norm=_LAYER_NORM,
        has_sdpa=False, scores_in_fp32=True, has_angles=False,
    ),
    "falcon": ModelType(
        absent={"vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
                "max_position_embeddings": 2048},
        ffn_key="ffn_hidden_size", ties_head=True, score_dropout=None, norm=_LAYER_NORM, shares_norm_input=True,
        softmax_in_fp32=False, repeats_kv_heads=True, makes_mask=True, keeps_fused_projection=True,
    ),
    "bloom": ModelType(
        absent={"vocab_size": 250880, "hidden_size": 64, "n_layer": 2, "n_head": 8},
        ties_head=True, norm=_LAYER_NORM, norms_outside=("embedding_norm", "final_norm"),
        has_sdpa=False, has_angles=False,
    ),
    "gpt2": ModelType(
        absent={"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
        ffn_key="n_inner", activation="gelu_new", residual_dropout=0.1, score_dropout=0.1, ties_head=True,
        position_offset=0, norm=_LAYER_NORM, softmax_in_fp32=False, has_angles=False,
    ),
}  # fmt: skip
