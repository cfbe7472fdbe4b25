"""The weights of one transformer block, by model type: names, shapes and what each belongs to.

One function a kind of block; `BLOCKS` says which kind each type has. Sources: the modeling files of
transformers 5.23; tests/plan/test_weights.py compares every type with the model transformers builds.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatune.errors import PlanError
from megatune.plan.shape import ModelShape

Component = Literal["embedding", "attention", "mlp", "norm", "head"]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Weight:
    """One parameter tensor. `module` is its module's path inside the block, or in the model."""

    component: Component
    module: str
    shape: tuple[int, ...]

    @property
    def num_params(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2


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


def _llama(config: Config, shape: ModelShape) -> list[Weight]:
    bias = bool(config.get("attention_bias", False))
    qkv_bias = True if config.get("model_type") == "qwen2" else bias
    weights = _separate(shape, "self_attn", "o_proj", qkv_bias, bias)
    weights += _mlp(
        shape,
        _features(config, shape, "intermediate_size"),
        ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj",
        bias=bool(config.get("mlp_bias", False)),
    )
    return [
        *weights,
        *_norms(shape.hidden_size, "input_layernorm", "post_attention_layernorm", bias=False),
    ]


def _qwen3(config: Config, shape: ModelShape) -> list[Weight]:
    norms = _norms(shape.head_size, "self_attn.q_norm", "self_attn.k_norm", bias=False)
    return [*_llama(config, shape), *norms]


def _gemma2(config: Config, shape: ModelShape) -> list[Weight]:
    more = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
    return [*_llama(config, shape), *_norms(shape.hidden_size, *more, bias=False)]


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


BLOCKS: dict[str, Callable[[Config, ModelShape], list[Weight]]] = {
    **dict.fromkeys(("llama", "mistral", "ministral", "qwen2", "gemma", "granite", "smollm3"), _llama),
    "qwen3": _qwen3,
    "gemma2": _gemma2,
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
"""Types without tensor-parallel plan (families.py) are counted too; they train with tp_size 1."""


def block_weights(config: Config, shape: ModelShape) -> list[Weight]:
    """The parameters of one block. Raises PlanError for a type without a row."""
    make = BLOCKS.get(shape.model_type)
    if make is None:
        raise PlanError(
            f"megatune cannot count the parameters of model type '{shape.model_type}' from its config.json, and "
            f"will not guess. Types it counts exactly: {', '.join(sorted(BLOCKS))}."
        )
    return make(config, shape)
