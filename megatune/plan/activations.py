"""Bytes that forward keeps for backward: of the transformers models as they are, family by family.

Counted from what autograd saves in the modeling files of transformers 5.23; tests/plan/test_activations.py
compares every family with the tensors autograd really keeps. Korthikanti et al. (arXiv:2205.05198, table 2)
count a fused GPT layer instead: `korthikanti_bytes`, for comparison.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatune.plan.weights import ModelWeights

Kernel = Literal["sdpa", "eager"]

_DROPOUT_KEYS = ("resid_pdrop", "hidden_dropout", "dropout", "resid_dropout", "residual_dropout")
_SCORE_DROPOUT_KEYS = ("attn_pdrop", "attention_dropout")
_MASK_BYTES = 1  # CUDA keeps dropout masks as booleans


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What one rank computes at a time."""

    batch: int
    seq: int
    element_bytes: int
    """Of the training precision: 2 for bf16 and fp16, 4 for fp32."""
    kernel: Kernel
    packed: bool = False
    """Documents side by side: sdpa is given a mask, and then repeats keys and values for each query head."""

    @property
    def count(self) -> int:
        return self.batch * self.seq


def block_bytes(model: ModelWeights, tokens: Tokens, tensor_parallel: int) -> int:
    """Bytes that one transformer block keeps on one rank. What every rank computes alike is not divided."""
    per_token = (
        _norm_bytes(model, tokens)
        + _attention_bytes(model, tokens, tensor_parallel)
        + _mlp_bytes(model, tokens, tensor_parallel)
        + 2 * _MASK_BYTES * model.shape.hidden_size * has_dropout(model)
    )
    return tokens.count * per_token


def checkpoint_bytes(model: ModelWeights, tokens: Tokens) -> int:
    """Bytes that a checkpointed block keeps: its input, whole on every tensor-parallel rank."""
    return tokens.count * tokens.element_bytes * model.shape.hidden_size


def outside_bytes(model: ModelWeights, tokens: Tokens) -> int:
    """Bytes kept outside the blocks and the loss: last norm, the head's input, the packed documents' mask."""
    last_norm = model.kind.norm.kept_bytes(tokens.element_bytes) * model.shape.hidden_size
    mask = 3 * tokens.batch * tokens.seq**2 if tokens.packed else 0  # boolean, and added in bf16 at each call
    return tokens.count * last_norm + mask


def largest_bytes(model: ModelWeights, tokens: Tokens, tensor_parallel: int) -> int:
    """Bytes of the largest tensor that a block keeps."""
    widest = max(model.shape.hidden_size, -(-model.ffn_size // tensor_parallel))
    return tokens.count * tokens.element_bytes * widest


def loss_chunk_rows(vocabulary: int, *, on_cpu: bool) -> int:
    """Tokens whose logits exist at a time when the loss is taken in chunks; `vocabulary`: this rank's part.

    2**24 logits (64 MiB in fp32) on a CPU. A GPU needs more rows to be busy, and reads and writes the gradient
    of the whole weight once a chunk: 2**25, and never below 512 tokens.

    >>> loss_chunk_rows(49152, on_cpu=True), loss_chunk_rows(32000, on_cpu=False)
    (341, 1048)
    """
    return max(64, 2**24 // vocabulary) if on_cpu else max(512, 2**25 // vocabulary)


def loss_bytes(
    model: ModelWeights,
    tokens: Tokens,
    tensor_parallel: int,
    *,
    chunked: bool,
    on_cpu: bool,
) -> int:
    """What the loss holds on one rank beyond the head's input, at its largest.

    chunked (model/head_loss.py): the logits of one chunk in the training precision, in fp32, and their gradient;
    fp32 gradients of the weight and of the head's input; a product on its way into the former. Otherwise
    (model/loss.py): all logits and their gradient in the training precision, and two fp32 copies of a chunk. So
    it is for a classifier head, which gives every token the scores of its few classes.
    """
    rows, element = model.num_local_outputs(tensor_parallel), tokens.element_bytes
    if not chunked or model.class_head is not None:
        return 2 * tokens.count * rows * element + min(tokens.count * rows, 2**24) * 4 * 2
    hidden, low = model.shape.hidden_size, element * (element < 4)
    chunk = min(tokens.count, loss_chunk_rows(rows, on_cpu=on_cpu)) * rows * (4 + 2 * low)
    return chunk + rows * hidden * (4 + low) + tokens.count * hidden * 4


def has_dropout(model: ModelWeights) -> bool:
    """Does the residual stream have dropout? GPT-2 and OPT do unless config.json says otherwise."""
    return _largest_share(model, _DROPOUT_KEYS, model.kind.residual_dropout) > 0


def activation_name(model: ModelWeights) -> str:
    """Which function the feed-forward layer has between its products, as config.json calls it."""
    keys = ("hidden_act", "activation_function", "activation")
    return next((str(model.config[key]) for key in keys if key in model.config), model.kind.activation)


def korthikanti_bytes(
    *, seq: int, batch: int, hidden: int, heads: int, tensor_parallel: int = 1, variant: str = "none"
) -> float:
    """Activation bytes of one fused GPT layer, arXiv:2205.05198 table 2.

    variant: none, sequence (parallel), selective (recomputation, or a flash kernel), sequence+selective, full.

    >>> korthikanti_bytes(seq=2048, batch=1, hidden=12288, heads=96, tensor_parallel=8,
    ...                   variant="sequence+selective") / 2**20
    102.0
    """
    tokens, scores = float(seq * batch * hidden), 5 * heads * seq / hidden
    if variant == "full":
        return 2 * tokens
    whole, split = (0.0, 34.0) if "sequence" in variant else (10.0, 24.0)
    kept_scores = 0.0 if "selective" in variant else scores
    return tokens * (whole + (split + kept_scores) / tensor_parallel)


def _largest_share(model: ModelWeights, keys: tuple[str, ...], default: float) -> float:
    return max(
        (float(model.config[key]) for key in keys if model.config.get(key) is not None), default=default
    )


def _norm_bytes(model: ModelWeights, tokens: Tokens) -> int:
    norms = {w.module for w in model.block if w.component == "norm" and w.shape[0] == model.shape.hidden_size}
    norms -= {name for name in norms if "_norm" in name and "attn." in name}  # those of heads
    hidden, element = model.shape.hidden_size, tokens.element_bytes
    kept_by_one = model.kind.norm.kept_bytes(element) * hidden
    if not model.kind.norm.has_weight:  # OLMo's two, which are not among the block's weights
        return 2 * (kept_by_one + 8)
    kept = len(norms) * (kept_by_one + 4)
    if model.kind.norms_outputs:
        kept -= len(norms) // 2 * element * hidden
    if len(norms) == 2 and model.kind.shares_norm_input and _is_parallel(model.config):
        kept -= element * hidden
    return kept


def _is_parallel(config: Mapping[str, Any]) -> bool:
    """Do attention and feed-forward layer stand side by side? Keys of GPT-NeoX and Falcon."""
    return bool(
        config.get("use_parallel_residual", True)
        and (config.get("parallel_attn", True) or config.get("new_decoder_architecture"))
    )


def _attention_bytes(model: ModelWeights, tokens: Tokens, tensor_parallel: int) -> int:
    shape, element = model.shape, tokens.element_bytes
    heads, kv_heads = shape.local_heads(tensor_parallel)
    width, kv_width = heads * shape.head_size, kv_heads * shape.head_size
    repeats = tokens.kernel == "eager" or tokens.packed or model.kind.repeats_kv_heads
    kept = element * (2 * width + 2 * (width if repeats else kv_width))
    if model.kind.scores_in_fp32:
        kept += 2 * (4 - element) * width
    if tokens.kernel == "sdpa":
        kept += _sdpa_extra(model, element, width, kv_width)
    if any("q_norm" in w.module or "q_layernorm" in w.module for w in model.block):
        kept += _head_norm_bytes(model, element, heads, kv_heads)
    if model.kind.sink_scores:
        kept += heads * (element + 8)
    if model.config.get("clip_qkv"):
        kept += element * (width + 2 * kv_width)
    kept += model.kind.angle_bytes * _rotary_size(model)
    if model.kind.makes_mask and tokens.kernel == "sdpa":
        return kept + 4 * heads + element * tokens.seq
    return kept + (4 * heads if tokens.kernel == "sdpa" else _score_bytes(model, tokens) * heads * tokens.seq)


def _rotary_size(model: ModelWeights) -> int:
    """Elements of a head that are rotated."""
    rope = model.config.get("rope_parameters") or {}
    share = rope.get("partial_rotary_factor", model.config.get("partial_rotary_factor", 1.0))
    return int(model.config.get("rotary_dim") or model.shape.head_size * share)


def _sdpa_extra(model: ModelWeights, element: int, width: int, kv_width: int) -> int:
    """A fused projection lives on while its value part does, beside the rotated query and key."""
    kept = element * width if model.kind.copies_output else 0
    splits_views = model.kind.keeps_fused_projection and not model.config.get("new_decoder_architecture")
    return kept + element * (width + kv_width) * splits_views


def _head_norm_bytes(model: ModelWeights, element: int, heads: int, kv_heads: int) -> int:
    each = model.kind.norm.kept_bytes(element) - element  # its output is rotated, and not kept
    width = model.shape.attention_width
    over_all_heads = any(w.module.endswith("q_norm") and w.shape == (width,) for w in model.block)
    num_norms = 2 if over_all_heads else heads + kv_heads
    return (heads + kv_heads) * each * model.shape.head_size + 4 * num_norms


def _score_bytes(model: ModelWeights, tokens: Tokens) -> int:
    """Bytes of one attention score: the softmax, its low-precision copy, and dropout's mask and result."""
    low, element = not model.kind.softmax_in_fp32, tokens.element_bytes
    kept = element if low or element == 4 else 4 + element
    kept += element * bool(model.config.get("attn_logit_softcapping"))
    default = model.kind.score_dropout
    if default is not None and _largest_share(model, _SCORE_DROPOUT_KEYS, default) > 0:
        kept += _MASK_BYTES + (element if low or element == 4 else 0)
    return kept


def _mlp_bytes(model: ModelWeights, tokens: Tokens, tensor_parallel: int) -> int:
    features, element = -(-model.ffn_size // tensor_parallel), tokens.element_bytes
    if model.has_experts:
        return _experts_bytes(model, element, features)
    if model.is_gated:
        return 4 * element * features  # gate, its activation, up, their product
    # gelu_new is written out in Python and keeps five tensors; relu keeps its output alone.
    return {"gelu_new": 5, "relu": 1}.get(activation_name(model), 2) * element * features


def _experts_bytes(model: ModelWeights, element: int, features: int) -> int:
    """Of grouped products (transformers' integrations/moe.py): a token lies there once for each of its experts.

    features: of all experts that a token has, on one rank.
    """
    experts, hidden = model.kind.experts, model.shape.hidden_size
    count, chosen = next(
        (w.shape[0], w.experts_per_token) for w in model.block if w.experts_per_token is not None
    )
    assert chosen is not None, "just looked for"
    places = 4 * 8 * chosen  # the order by experts and back, as whole numbers
    scores = 4 * (chosen if experts.softmax_over_chosen else count)
    scores += (
        chosen * (element if experts.choice_bytes is None else experts.choice_bytes) + experts.token_bytes
    )
    has_shared = any(w.module.endswith("shared_expert_gate") for w in model.block)
    shared = element * (hidden + 1) * has_shared
    return element * (experts.feature_copies * features + 2 * chosen * hidden) + places + scores + shared
