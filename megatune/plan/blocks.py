"""The weights of one transformer block, by model type: names, shapes and what each belongs to.

One function a kind of block; `BLOCKS` says which kind each type has. Sources: the modeling files of
transformers 5.23; tests/plan/test_weights.py compares every type with the model transformers builds.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from megatune.errors import PlanError
from megatune.plan.config_values import read_number
from megatune.plan.shape import ModelShape

Component = Literal["embedding", "attention", "mlp", "norm", "head"]
Config = Mapping[str, Any]
Block = Callable[[Config, ModelShape], "list[Weight]"]
"""The weights of a block, or of one of its layers."""


@dataclass(frozen=True)
class Weight:
    """One parameter tensor. `module` is its module's path inside the block, or in the model."""

    component: Component
    module: str
    shape: tuple[int, ...]
    experts_per_token: int | None = None
    """Of experts' weights, which lie one behind another along the first dimension; None of all others."""

    @property
    def num_active_params(self) -> int:
        """Elements that one token is multiplied with; none of a vector's, nor of the biases of experts."""
        if not self.is_matrix:
            return 0
        if self.experts_per_token is None:
            return self.num_params
        return self.num_params // self.shape[0] * self.experts_per_token

    @property
    def num_params(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def is_matrix(self) -> bool:
        """Is it multiplied, and decayed?"""
        return is_decayed(self.module, len(self.shape))


def is_decayed(name: str, num_dimensions: int) -> bool:
    """Whether a parameter has weight decay: norms of each head and biases of each expert are no matrices.

    >>> is_decayed("mlp.experts.gate_up_proj", 3), is_decayed("mlp.experts.gate_up_proj_bias", 2)
    (True, False)
    >>> is_decayed("self_attn.q_norm.weight", 2)
    False
    """
    of_a_norm = any("norm" in part for part in name.split("."))
    return num_dimensions > 1 and not of_a_norm and not name.endswith("bias")


@dataclass(frozen=True)
class _Linear:
    module: str
    num_out: int
    num_in: int
    has_bias: bool

    def weights(self, component: Component) -> Iterator[Weight]:
        yield Weight(component, self.module, (self.num_out, self.num_in))
        if self.has_bias:
            yield Weight(component, self.module, (self.num_out,))


def _norms(size: int, *modules: str, bias: bool) -> Iterator[Weight]:
    for module in modules:
        yield from [Weight("norm", module, (size,))] * (2 if bias else 1)


def _separate(shape: ModelShape, attention: str, output: str, qkv_bias: bool, out_bias: bool) -> list[Weight]:
    """One Linear each for query, key, value and output."""
    hidden, width, kv_width = shape.hidden_size, shape.attention_width, shape.num_kv_heads * shape.head_size
    linears = (
        _Linear(f"{attention}.q_proj", width, hidden, qkv_bias),
        _Linear(f"{attention}.k_proj", kv_width, hidden, qkv_bias),
        _Linear(f"{attention}.v_proj", kv_width, hidden, qkv_bias),
        _Linear(f"{attention}.{output}", hidden, width, out_bias),
    )
    return [weight for linear in linears for weight in linear.weights("attention")]


def _fused(
    shape: ModelShape, qkv: str, output: str, *, bias: bool, out_bias: bool | None = None
) -> list[Weight]:
    """One Linear for query, key and value together."""
    hidden, width = shape.hidden_size, shape.attention_width
    together = width + 2 * shape.num_kv_heads * shape.head_size
    out = _Linear(output, hidden, width, bias if out_bias is None else out_bias)
    return [*_Linear(qkv, together, hidden, bias).weights("attention"), *out.weights("attention")]


def _mlp(
    shape: ModelShape, features: int, inputs: tuple[str, ...], output: str, *, bias: bool, fused: int = 1
) -> list[Weight]:
    """Feed-forward layers; `fused` input projections lie side by side in one weight."""
    linears = [_Linear(name, fused * features, shape.hidden_size, bias) for name in inputs]
    linears.append(_Linear(output, shape.hidden_size, features, bias))
    return [weight for linear in linears for weight in linear.weights("mlp")]


def _features(config: Config, shape: ModelShape, *names: str) -> int:
    found = next((config[name] for name in names if config.get(name) is not None), None)
    return int(found) if found is not None else 4 * shape.hidden_size


_AROUND = ("input_layernorm", "post_attention_layernorm")
_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
_FOUR = (*_AROUND, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def _like_llama(
    *norms: str,
    feed: Block | None = None,
    head_norms: bool = False,
    norm_bias: bool = False,
    fused_gate: bool = False,
    qkv_bias: str | bool = "attention_bias",
    out_bias: str | bool = "attention_bias",
    mlp_bias: str | bool = "mlp_bias",
    true_when_absent: str = "",
) -> Block:
    """Blocks of query, key, value, a gated feed-forward layer and `norms`. Biases: the key that tells, or the fact."""

    def has(config: Config, bias: str | bool) -> bool:
        return bias if isinstance(bias, bool) else bool(config.get(bias, bias == true_when_absent))

    def gated(config: Config, shape: ModelShape) -> list[Weight]:
        return _mlp(
            shape,
            _features(config, shape, "intermediate_size"),
            ("mlp.gate_up_proj",) if fused_gate else ("mlp.gate_proj", "mlp.up_proj"),
            "mlp.down_proj",
            bias=has(config, mlp_bias),
            fused=2 if fused_gate else 1,
        )

    def block(config: Config, shape: ModelShape) -> list[Weight]:
        return [
            *_separate(shape, "self_attn", "o_proj", has(config, qkv_bias), has(config, out_bias)),
            *(feed(config, shape) if feed else gated(config, shape)),
            *_norms(shape.hidden_size, *norms, bias=norm_bias),
            *_norms(
                shape.head_size, *(("self_attn.q_norm", "self_attn.k_norm") if head_norms else ()), bias=False
            ),
        ]

    return block


def _experts(
    config: Config,
    shape: ModelShape,
    *,
    features: str,
    module: str = "mlp",
    router: str = "gate",
    bias: bool = False,
) -> list[Weight]:
    """A router and its experts. Raises PlanError where only some layers have them: blocks are counted all alike."""
    if config.get("mlp_only_layers") or (config.get("decoder_sparse_step") or 1) != 1:
        raise PlanError(
            f"this {shape.model_type} model has experts in some layers only (mlp_only_layers = "
            f"{config.get('mlp_only_layers')}, decoder_sparse_step = {config.get('decoder_sparse_step')}), and "
            "megatune counts models whose layers are alike. It trains; megatune plan and tune do not know it."
        )
    count, chosen = read_number(config, "num_experts"), read_number(config, "experts_per_token")
    assert count is not None and chosen is not None, "MODEL_TYPES has both for types with experts"
    size, hidden = _features(config, shape, features), shape.hidden_size
    weights = [*_Linear(f"{module}.{router}", count, hidden, bias).weights("mlp")]
    shapes = [("gate_up_proj", (count, 2 * size, hidden)), ("down_proj", (count, hidden, size))]
    if bias:  # gpt_oss: inputs first, and a bias each
        shapes = [("gate_up_proj", (count, hidden, 2 * size)), ("down_proj", (count, size, hidden))]
    weights += [Weight("mlp", f"{module}.experts.{name}", sizes, chosen) for name, sizes in shapes]
    if bias:
        weights += [Weight("mlp", f"{module}.experts.{name}_bias", (count, width), chosen)
                    for name, width in (("gate_up_proj", 2 * size), ("down_proj", hidden))]  # fmt: skip
    return weights


def _qwen2_moe_feed(config: Config, shape: ModelShape) -> list[Weight]:
    shared = _features(config, shape, "shared_expert_intermediate_size")
    inputs = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj")
    return [
        *_experts(config, shape, features="moe_intermediate_size"),
        *_mlp(shape, shared, inputs, "mlp.shared_expert.down_proj", bias=False),
        Weight("mlp", "mlp.shared_expert_gate", (1, shape.hidden_size)),
    ]


def _gpt_oss(config: Config, shape: ModelShape) -> list[Weight]:
    feed = partial(_experts, features="intermediate_size", router="router", bias=True)
    weights = _like_llama(*_AROUND, feed=feed, true_when_absent="attention_bias")(config, shape)
    return [*weights, Weight("attention", "self_attn.sinks", (shape.num_heads,))]


def _cohere(config: Config, shape: ModelShape) -> list[Weight]:
    weights = _like_llama("input_layernorm", mlp_bias=False)(config, shape)
    if config.get("use_qk_norm"):
        heads = (("q_norm", shape.num_heads), ("k_norm", shape.num_kv_heads))
        weights += [Weight("norm", f"self_attn.{name}", (count, shape.head_size)) for name, count in heads]
    return weights


def _stablelm(config: Config, shape: ModelShape) -> list[Weight]:
    norms = _AROUND[:1] if config.get("use_parallel_residual") else _AROUND
    make = _like_llama(*norms, norm_bias=True, qkv_bias="use_qkv_bias", out_bias=False, mlp_bias=False)
    weights = make(config, shape)
    if config.get("qk_layernorm"):
        weights += _norms(shape.head_size, *["self_attn.q_layernorm.norms"] * shape.num_heads, bias=False)
        weights += _norms(shape.head_size, *["self_attn.k_layernorm.norms"] * shape.num_kv_heads, bias=False)
    return weights


def _starcoder2(config: Config, shape: ModelShape) -> list[Weight]:
    bias = bool(config.get("use_bias", True))
    features = _features(config, shape, "intermediate_size")
    weights = _separate(shape, "self_attn", "o_proj", bias, bias)
    weights += _mlp(shape, features, ("mlp.c_fc",), "mlp.c_proj", bias=bias)
    return [*weights, *_norms(shape.hidden_size, *_AROUND, bias=True)]


def _norms_over_heads(shape: ModelShape) -> list[Weight]:
    """Norms of query and key over all heads together."""
    kv_width = shape.num_kv_heads * shape.head_size
    return [
        *_norms(shape.attention_width, "self_attn.q_norm", bias=False),
        *_norms(kv_width, "self_attn.k_norm", bias=False),
    ]


def _olmo2(config: Config, shape: ModelShape) -> list[Weight]:
    return [*_like_llama(*_AFTER, mlp_bias=False)(config, shape), *_norms_over_heads(shape)]


def _olmoe(config: Config, shape: ModelShape) -> list[Weight]:
    feed = partial(_experts, features="intermediate_size")
    return [*_like_llama(*_AROUND, feed=feed)(config, shape), *_norms_over_heads(shape)]


def _phi(config: Config, shape: ModelShape) -> list[Weight]:
    features = _features(config, shape, "intermediate_size")
    weights = _separate(shape, "self_attn", "dense", True, True)
    weights += _mlp(shape, features, ("mlp.fc1",), "mlp.fc2", bias=True)
    weights += _norms(shape.hidden_size, "input_layernorm", bias=True)
    if config.get("qk_layernorm"):
        weights += _norms(shape.head_size, "self_attn.q_layernorm", "self_attn.k_layernorm", bias=True)
    return weights


def _phi3(config: Config, shape: ModelShape) -> list[Weight]:
    features = _features(config, shape, "intermediate_size")
    weights = _fused(shape, "self_attn.qkv_proj", "self_attn.o_proj", bias=False)
    weights += _mlp(shape, features, ("mlp.gate_up_proj",), "mlp.down_proj", bias=False, fused=2)
    norms = _norms(shape.hidden_size, "input_layernorm", "post_attention_layernorm", bias=False)
    return [*weights, *norms]


def _opt(config: Config, shape: ModelShape) -> list[Weight]:
    bias = bool(config.get("enable_bias", True))
    weights = _separate(shape, "self_attn", "out_proj", bias, bias)
    weights += _mlp(shape, _features(config, shape, "ffn_dim"), ("fc1",), "fc2", bias=bias)
    if config.get("layer_norm_elementwise_affine", True):
        weights += _norms(shape.hidden_size, "self_attn_layer_norm", "final_layer_norm", bias=True)
    return weights


def _gptj(config: Config, shape: ModelShape) -> list[Weight]:
    weights = _separate(shape, "attn", "out_proj", False, False)
    weights += _mlp(shape, _features(config, shape, "n_inner"), ("mlp.fc_in",), "mlp.fc_out", bias=True)
    return [*weights, *_norms(shape.hidden_size, "ln_1", bias=True)]


def _gpt_neo(config: Config, shape: ModelShape) -> list[Weight]:
    weights = _separate(shape, "attn.attention", "out_proj", False, True)
    features = _features(config, shape, "intermediate_size")
    weights += _mlp(shape, features, ("mlp.c_fc",), "mlp.c_proj", bias=True)
    return [*weights, *_norms(shape.hidden_size, "ln_1", "ln_2", bias=True)]


def _gpt_neox(config: Config, shape: ModelShape) -> list[Weight]:
    bias = bool(config.get("attention_bias", True))
    weights = _fused(shape, "attention.query_key_value", "attention.dense", bias=bias)
    features = _features(config, shape, "intermediate_size")
    weights += _mlp(shape, features, ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", bias=True)
    return [
        *weights,
        *_norms(shape.hidden_size, "input_layernorm", "post_attention_layernorm", bias=True),
    ]


def _falcon(config: Config, shape: ModelShape) -> list[Weight]:
    bias = bool(config.get("bias", False))
    weights = _fused(shape, "self_attention.query_key_value", "self_attention.dense", bias=bias)
    features = _features(config, shape, "ffn_hidden_size")
    weights += _mlp(shape, features, ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", bias=bias)
    if config.get("new_decoder_architecture") and config.get("num_ln_in_parallel_attn", 2) != 1:
        norms: tuple[str, ...] = ("ln_attn", "ln_mlp")
    elif config.get("new_decoder_architecture") or config.get("parallel_attn", True):
        norms = ("input_layernorm",)
    else:
        norms = ("input_layernorm", "post_attention_layernorm")
    return [*weights, *_norms(shape.hidden_size, *norms, bias=True)]


def _bloom(_: Config, shape: ModelShape) -> list[Weight]:
    weights = _fused(shape, "self_attention.query_key_value", "self_attention.dense", bias=True)
    weights += _mlp(shape, 4 * shape.hidden_size, ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", bias=True)
    return [
        *weights,
        *_norms(shape.hidden_size, "input_layernorm", "post_attention_layernorm", bias=True),
    ]


def _gpt2(config: Config, shape: ModelShape) -> list[Weight]:
    weights = _fused(shape, "attn.c_attn", "attn.c_proj", bias=True)
    weights += _mlp(shape, _features(config, shape, "n_inner"), ("mlp.c_fc",), "mlp.c_proj", bias=True)
    return [*weights, *_norms(shape.hidden_size, "ln_1", "ln_2", bias=True)]


_glm = partial(
    _like_llama, fused_gate=True, out_bias=False, mlp_bias=False, true_when_absent="attention_bias"
)

BLOCKS: dict[str, Block] = {
    **dict.fromkeys(("llama", "granite", "smollm3"), _like_llama(*_AROUND)),
    **dict.fromkeys(
        ("mistral", "ministral", "ministral3"),
        _like_llama(*_AROUND, qkv_bias=False, out_bias=False, mlp_bias=False),
    ),
    "gemma": _like_llama(*_AROUND, mlp_bias=False),
    "qwen2": _like_llama(*_AROUND, qkv_bias=True, out_bias=False, mlp_bias=False),
    "qwen3": _like_llama(*_AROUND, head_norms=True, mlp_bias=False),
    "gemma2": _like_llama(*_FOUR, mlp_bias=False),
    "gemma3_text": _like_llama(*_FOUR, head_norms=True, mlp_bias=False),
    "glm": _glm(*_AROUND),
    "glm4": _glm(*_AROUND, "post_self_attn_layernorm", "post_mlp_layernorm"),
    "exaone4": _like_llama(*_AFTER, head_norms=True, qkv_bias=False, out_bias=False, mlp_bias=False),
    "seed_oss": _like_llama(*_AROUND, out_bias="attention_out_bias", true_when_absent="attention_bias"),
    "ernie4_5": _like_llama(*_AROUND, qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias"),
    "olmo": _like_llama(mlp_bias=False),
    **dict.fromkeys(("olmo2", "olmo3"), _olmo2),
    "qwen3_moe": _like_llama(
        *_AROUND, head_norms=True, feed=partial(_experts, features="moe_intermediate_size")
    ),
    "qwen2_moe": _like_llama(
        *_AROUND, qkv_bias="qkv_bias", out_bias=False, feed=_qwen2_moe_feed, true_when_absent="qkv_bias"
    ),
    "mixtral": _like_llama(
        *_AROUND, qkv_bias=False, out_bias=False, feed=partial(_experts, features="intermediate_size")
    ),
    "olmoe": _olmoe,
    "granitemoe": _like_llama(
        *_AROUND,
        feed=partial(_experts, features="intermediate_size", module="block_sparse_moe", router="router"),
    ),
    "gpt_oss": _gpt_oss,
    "cohere": _cohere,
    "cohere2": _like_llama("input_layernorm", mlp_bias=False),
    "stablelm": _stablelm,
    "starcoder2": _starcoder2,
    "phi": _phi,
    "phi3": _phi3,
    "opt": _opt,
    "gptj": _gptj,
    "gpt_neo": _gpt_neo,
    "gpt_neox": _gpt_neox,
    "falcon": _falcon,
    "bloom": _bloom,
    "gpt2": _gpt2,
}


def block_weights(config: Config, shape: ModelShape) -> list[Weight]:
    """The parameters of one block. Raises PlanError for a type without a row."""
    make = BLOCKS.get(shape.model_type)
    if make is None:
        raise PlanError(
            f"megatune cannot count the parameters of model type '{shape.model_type}' from its config.json, and "
            f"will not guess. Types it counts exactly: {', '.join(sorted(BLOCKS))}."
        )
    return make(config, shape)
