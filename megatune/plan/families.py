"""How each model family is cut for tensor parallelism, and what is refused: one row a family.

A *column* layer is cut along its outputs, a *row* layer along its inputs; between the two every
rank works on its own heads or features, and the row layer's outputs are summed over the group
(Megatron-LM, arXiv:1909.08053, section 3). Names are module paths inside one transformer block.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from megatune.errors import ModelError
from megatune.plan.shape import ModelShape
from megatune.plan.shards import Cut, Segment

# What a segment of a weight consists of:
#   q    query heads, grouped by the key-value head they share
#   kv   key or value heads
#   qkv  for each key-value head: its query heads, its key, its value, interleaved
#   ffn  features of the feed-forward layer
#   ffn8 the same, eight at a time: `torch.nn.functional.grouped_mm` wants rows of whole 16 bytes
#   pairs8  for each feature its gate and its input side by side, eight such pairs at a time
#   heads   one number for each query head
Segments = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Family:
    """The tensor-parallel plan of one model_type."""

    columns: Mapping[str, Segments]
    rows: Mapping[str, Segments]
    local_attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Module path -> attribute -> what it must say on one rank: `heads`, `kv_heads` or `q_width`."""
    partial_gradients: tuple[str, ...] = ()
    """Replicated parameters that only see this rank's heads: their gradients are summed over the group."""
    norms_over_heads: Mapping[str, Segments] = field(default_factory=dict)
    """RMS norms over all heads together: the weight is cut, the mean of squares is taken over the group."""
    experts: str | None = None
    """Module path of experts, whose partial answers are summed. A block may have them or a plain feed-forward layer;
    what it has not got is not cut."""
    parameters: Mapping[str, tuple[int, Segments]] = field(default_factory=dict)
    """Parameters that are no layer's, as the stacked weights of experts -> the dimension that is cut, its segments."""
    added_once: tuple[str, ...] = ()
    """Parameters of experts that are added to their answers: the first rank adds them, for all."""
    slices_alibi: str | None = None
    """Module path whose `alibi` argument must be cut to this rank's heads."""
    refuse: Callable[[Mapping[str, Any]], str | None] = lambda _: None
    """A reason why this config cannot be cut, or None."""

    def place_of(self, module: str, *, is_matrix: bool) -> tuple[int, Segments] | None:
        """The dimension along which a weight of `module` is cut, and what it consists of; None for whole ones."""
        if module in self.parameters:
            return self.parameters[module]
        by_output = {**self.columns, **self.norms_over_heads}
        if module in by_output:
            return 0, by_output[module]
        return (1, self.rows[module]) if module in self.rows and is_matrix else None

    @property
    def kv_layers(self) -> tuple[str, ...]:
        """Layers of key or value heads and nothing else: several ranks may have one head of them."""
        return tuple(name for name, segments in self.columns.items() if segments == ("kv",))

    def shared_layers(self, shape: ModelShape, tensor_parallel: int) -> tuple[str, ...]:
        """Those of `kv_layers` that every rank of such a group has whole, and computes one head of."""
        return self.kv_layers if tensor_parallel > shape.num_kv_heads else ()

    @property
    def can_share_kv_heads(self) -> bool:
        """Whether a group may have more ranks than there are key-value heads."""
        return bool(self.kv_layers) and not self.norms_over_heads


def _separate(attention: str, output: str, mlp_in: tuple[str, ...], mlp_out: str, **more: Any) -> Family:
    """A family with one Linear each for query, key and value."""
    return Family(
        columns={
            f"{attention}.q_proj": ("q",),
            f"{attention}.k_proj": ("kv",),
            f"{attention}.v_proj": ("kv",),
            **dict.fromkeys(mlp_in, ("ffn",)),
        },
        rows={f"{attention}.{output}": ("q",), mlp_out: ("ffn",)},
        **more,
    )


_GATED = ("mlp.gate_proj", "mlp.up_proj")
_LLAMA = _separate("self_attn", "o_proj", _GATED, "mlp.down_proj")
_LLAMA_HEAD_NORMS = replace(_LLAMA, partial_gradients=("self_attn.q_norm.weight", "self_attn.k_norm.weight"))
_LLAMA_FUSED_GATE = replace(
    _LLAMA,
    columns={
        **{name: cut for name, cut in _LLAMA.columns.items() if name not in _GATED},
        "mlp.gate_up_proj": ("ffn", "ffn"),
    },
)
_OLMO2 = replace(_LLAMA, norms_over_heads={"self_attn.q_norm": ("q",), "self_attn.k_norm": ("kv",)})


def _with_experts(family: Family, experts: str = "mlp.experts", shared: str = "") -> Family:
    """`family` with experts, in some or all of its blocks; `shared` is one beside them that every token has."""
    mine = {f"{shared}.{name}_proj": ("ffn",) for name in ("gate", "up")} if shared else {}
    output = {f"{shared}.down_proj": ("ffn",)} if shared else {}
    return replace(
        family,
        columns={**family.columns, **mine},
        rows={**family.rows, **output},
        experts=experts,
        parameters={  # of (experts, outputs, inputs)
            f"{experts}.gate_up_proj": (1, ("ffn8", "ffn8")),
            f"{experts}.down_proj": (2, ("ffn8",)),
        },
    )


def _interleaved(attention: str, **more: Any) -> Family:
    """A family with one fused weight, interleaved head by head."""
    return Family(
        columns={f"{attention}.query_key_value": ("qkv",), "mlp.dense_h_to_4h": ("ffn",)},
        rows={f"{attention}.dense": ("q",), "mlp.dense_4h_to_h": ("ffn",)},
        **more,
    )


def _refuse_falcon(config: Mapping[str, Any]) -> str | None:
    if config.get("alibi"):
        return "this Falcon uses ALiBi, whose bias DeepSpeed and megatune do not cut"
    return None


def _refuse_bloom(config: Mapping[str, Any]) -> str | None:
    degree = config.get("pretraining_tp") or 1
    if config.get("slow_but_exact") and degree > 1:
        return (
            f"this BLOOM has slow_but_exact with pretraining_tp = {degree}, which slices whole weights at every "
            "call and cannot work on a share of them (slow_but_exact: false in its config.json trains)"
        )
    return None


def _refuse_norms_of_each_head(config: Mapping[str, Any]) -> str | None:
    if config.get("use_qk_norm") or config.get("qk_layernorm"):
        key = "use_qk_norm" if config.get("use_qk_norm") else "qk_layernorm"
        return (
            f"this model has {key}, a norm with weights of its own for each head, which megatune does not cut"
        )
    return None


# Proven equal to one device by tests/model/test_family_parity.py; sources of the names: the
# modeling files of transformers 5.23 and 5.24.
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        (
            "llama",
            "mistral",
            "ministral",
            "ministral3",
            "qwen2",
            "gemma",
            "gemma2",
            "granite",
            "smollm3",
            "cohere2",
            "olmo",
            "seed_oss",
            "ernie4_5",
        ),
        _LLAMA,
    ),
    **dict.fromkeys(("qwen3", "gemma3_text", "exaone4"), _LLAMA_HEAD_NORMS),
    **dict.fromkeys(("glm", "glm4"), _LLAMA_FUSED_GATE),
    **dict.fromkeys(("olmo2", "olmo3"), _OLMO2),
    "mixtral": _with_experts(_LLAMA),
    "qwen3_moe": _with_experts(_LLAMA_HEAD_NORMS),
    "qwen2_moe": _with_experts(_LLAMA, shared="mlp.shared_expert"),
    "olmoe": _with_experts(_OLMO2),
    "granitemoe": _with_experts(_LLAMA, experts="block_sparse_moe.experts"),
    "gpt_oss": replace(
        _LLAMA,
        experts="mlp.experts",
        parameters={  # of (experts, inputs, outputs)
            "self_attn.sinks": (0, ("heads",)),
            "mlp.experts.gate_up_proj": (2, ("pairs8",)),
            "mlp.experts.gate_up_proj_bias": (1, ("pairs8",)),
            "mlp.experts.down_proj": (1, ("ffn8",)),
        },
        added_once=("mlp.experts.down_proj_bias",),
        partial_gradients=("mlp.experts.down_proj_bias",),
    ),
    "cohere": replace(_LLAMA, refuse=_refuse_norms_of_each_head),
    "stablelm": replace(
        _LLAMA,
        local_attributes={"self_attn": {"num_heads": "heads", "num_key_value_heads": "kv_heads"}},
        refuse=_refuse_norms_of_each_head,
    ),
    "starcoder2": _separate("self_attn", "o_proj", ("mlp.c_fc",), "mlp.c_proj"),
    "phi": _separate(
        "self_attn",
        "dense",
        ("mlp.fc1",),
        "mlp.fc2",
        partial_gradients=tuple(
            f"self_attn.{norm}_layernorm.{part}" for norm in "qk" for part in ("weight", "bias")
        ),
    ),
    "phi3": Family(
        columns={"self_attn.qkv_proj": ("q", "kv", "kv"), "mlp.gate_up_proj": ("ffn", "ffn")},
        rows={"self_attn.o_proj": ("q",), "mlp.down_proj": ("ffn",)},
        # It slices the fused output by counts it reads from the config at every call.
        local_attributes={
            "self_attn": {"num_key_value_heads": "kv_heads", "config.num_attention_heads": "heads"}
        },
    ),
    "opt": _separate(
        "self_attn", "out_proj", ("fc1",), "fc2", local_attributes={"self_attn": {"num_heads": "heads"}}
    ),
    "gptj": _separate(
        "attn",
        "out_proj",
        ("mlp.fc_in",),
        "mlp.fc_out",
        local_attributes={"attn": {"num_attention_heads": "heads"}},
    ),
    "gpt_neo": _separate(
        "attn.attention",
        "out_proj",
        ("mlp.c_fc",),
        "mlp.c_proj",
        local_attributes={"attn.attention": {"num_heads": "heads"}},
    ),
    "gpt_neox": _interleaved("attention"),
    "falcon": _interleaved(
        "self_attention",
        local_attributes={"self_attention": {"num_heads": "heads", "num_kv_heads": "kv_heads"}},
        refuse=_refuse_falcon,
    ),
    "bloom": _interleaved(
        "self_attention",
        local_attributes={"self_attention": {"num_heads": "heads"}},
        slices_alibi="self_attention",
        refuse=_refuse_bloom,
    ),
    # Its Conv1D layers are turned into Linear first (model/conv1d.py), so dimension 0 is the output.
    "gpt2": Family(
        columns={"attn.c_attn": ("q", "q", "q"), "mlp.c_fc": ("ffn",)},
        rows={"attn.c_proj": ("q",), "mlp.c_proj": ("ffn",)},
        local_attributes={"attn": {"split_size": "q_width", "num_heads": "heads"}},
    ),
}


def find_family(config: Mapping[str, Any], shape: ModelShape, tensor_parallel: int) -> Family | None:
    """The plan for `config` at this degree; None at degree 1, where nothing is cut.

    Raises ModelError with the reason and what would work, before any weight is read.
    """
    if tensor_parallel == 1:
        return None
    family = FAMILIES.get(shape.model_type)
    if family is None:
        raise ModelError(
            f"parallel.tp_size is {tensor_parallel}, but megatune has no tensor-parallel plan for model type "
            f"'{shape.model_type}' and will not guess one. Types with a proven plan: "
            f"{', '.join(sorted(FAMILIES))}. parallel.tp_size=1 works with any causal language model "
            "(ZeRO-3 alone still divides its weights over all ranks)."
        )
    reason = why_never_cut(config, shape) or _refuse_heads(family, shape, tensor_parallel)
    if reason:
        raise ModelError(
            f"parallel.tp_size is {tensor_parallel}: {reason}. Use {allowed_degrees(config, shape)}."
        )
    return family


def why_never_cut(config: Mapping[str, Any], shape: ModelShape) -> str | None:
    """Why this model trains with tp_size 1 alone; None where it can be cut."""
    family = FAMILIES.get(shape.model_type)
    if family is None:
        return f"'{shape.model_type}' has no tensor-parallel plan"
    return family.refuse(config)


def _refuse_heads(family: Family, shape: ModelShape, tensor_parallel: int) -> str | None:
    most = _most_ranks(family, shape)
    if tensor_parallel <= most:
        return None
    kind = "attention" if most == shape.num_heads else "key-value"
    why = f"the model has {most} {kind} head(s), so {tensor_parallel - most} rank(s) of each group would hold none"
    if kind == "attention":
        return why
    return f"{why}, and of '{shape.model_type}' ranks cannot share one: its weights or norms span all heads"


def _most_ranks(family: Family, shape: ModelShape) -> int:
    return shape.num_heads if family.can_share_kv_heads else shape.num_kv_heads


def allowed_degrees(config: Mapping[str, Any], shape: ModelShape) -> str:
    """The degrees that work for this model, as words for an error."""
    most = 1 if why_never_cut(config, shape) else _most_ranks(FAMILIES[shape.model_type], shape)
    return f"parallel.tp_size from 1 to {most}" if most > 1 else "parallel.tp_size=1"


def weight_cut(segments: Segments, shape: ModelShape, *, dim: int, full_size: int, name: str) -> Cut:
    """The cut of a weight whose dimension `dim` has `full_size` elements.

    Raises ModelError when the sizes do not fit the plan: then the plan is not this model's.
    """
    group, size = shape.heads_of_group, shape.head_size
    units = {
        "q": Segment(shape.num_kv_heads, group * size, group),
        "kv": Segment(shape.num_kv_heads, size),
        "qkv": Segment(shape.num_kv_heads, (group + 2) * size),
    }
    features = full_size // len(segments)
    units["heads"] = Segment(shape.num_kv_heads, group, group)
    units["ffn"] = Segment(features, 1)
    for code, width in (("ffn8", 1), ("pairs8", 2)):
        at_once = width if features % (8 * width) else 8 * width
        units[code] = Segment(features // at_once, at_once)
    cut = Cut(dim=dim, segments=tuple(units[code] for code in segments))
    if cut.size != full_size:
        raise ModelError(
            f"{name} has {full_size} elements along dimension {dim}, the plan of '{shape.model_type}' expects "
            f"{cut.size}. This variant of the family is not one megatune can cut; use parallel.tp_size=1."
        )
    return cut
