"""Parameters counted from config.json are those of the model that transformers builds, for every type."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import EXPERTS, TINY
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from megatune.errors import ModelError, PlanError
from megatune.model.build import build_model
from megatune.model.conv1d import conv1d_to_linear
from megatune.model.heads import find_head
from megatune.model.source import open_source
from megatune.model.tensor_parallel import cut_block, cut_vocabulary
from megatune.plan.blocks import BLOCKS
from megatune.plan.families import FAMILIES
from megatune.plan.model_types import MODEL_TYPES
from megatune.plan.weights import ClassHead, count_model

_TP = 2


def _llama(hidden: int, layers: int, heads: int, ffn: int, **more: Any) -> dict[str, Any]:
    return {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "intermediate_size": ffn, **more}  # fmt: skip


def _gpt2(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {"n_embd": hidden, "n_layer": layers, "n_head": heads, **more}


def _neox(hidden: int, layers: int, heads: int, ffn: int) -> dict[str, Any]:
    return {**_llama(hidden, layers, heads, ffn), "vocab_size": 50432}


KNOWN: list[tuple[str, dict[str, Any], int]] = [
    ("gpt2", {}, 124_439_808),
    ("gpt2", _gpt2(1600, 48, 25), 1_557_611_200),
    ("gpt2", _gpt2(12288, 96, 96, n_positions=2048), 174_604_259_328),
    ("gpt2", _gpt2(25600, 128, 160, n_positions=2048, vocab_size=51200), 1_008_038_758_400),
    (
        "gpt_neo",
        {
            "hidden_size": 2560,
            "num_layers": 32,
            "num_heads": 20,
            "attention_types": [[["global", "local"], 16]],
        },
        2_651_307_520,
    ),
    ("gptj", {}, 6_050_882_784),
    ("gpt_neox", _neox(6144, 44, 64, 24576), 20_554_567_680),
    ("opt", _llama(12288, 96, 96, 0, ffn_dim=49152, word_embed_proj_dim=12288), 174_604_468_224),
    ("bloom", {"hidden_size": 14336, "n_layer": 70, "n_head": 112}, 176_247_271_424),
    ("llama", _llama(4096, 32, 32, 11008), 6_738_415_616),
    ("llama", _llama(8192, 80, 64, 28672, num_key_value_heads=8, vocab_size=128256), 70_553_706_496),
    ("mistral", {"max_position_embeddings": 32768}, 7_241_732_096),
    ("qwen2", _llama(3584, 28, 28, 18944, num_key_value_heads=4, vocab_size=152064), 7_615_616_512),
    ("qwen3", _llama(5120, 64, 64, 25600, num_key_value_heads=8, head_dim=128), 32_762_123_264),
    ("gemma", {}, 8_537_680_896),
    ("phi", _llama(2560, 32, 32, 10240), 2_779_683_840),
    ("phi3", {}, 3_821_079_552),
]
"""Published or well-known shapes, and what transformers builds of them."""

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((kind, config) for kind, config in TINY.values()),
    ("opt", {**TINY["opt"][1], "enable_bias": False, "layer_norm_elementwise_affine": False}),
    ("opt", {**TINY["opt"][1], "do_layer_norm_before": False, "word_embed_proj_dim": 64}),
    ("falcon", {**TINY["falcon"][1], "num_ln_in_parallel_attn": 1, "bias": False}),
    ("falcon", {**TINY["falcon-rw"][1], "parallel_attn": True, "multi_query": True}),
    ("llama", {**TINY["llama"][1], "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2}),
    ("qwen3", {**TINY["qwen3"][1], "attention_bias": True}),
    ("gpt_neox", {**TINY["gpt_neox"][1], "attention_bias": False, "tie_word_embeddings": True}),
    ("gpt2", {**TINY["gpt2"][1], "n_inner": 100, "tie_word_embeddings": False}),
    ("smollm3", {**TINY["smollm3"][1], "attention_bias": True, "mlp_bias": True}),
    ("granite", {**TINY["granite"][1], "mlp_bias": True}),
    ("cohere", {**TINY["cohere"][1], "use_qk_norm": True, "attention_bias": True}),
    ("stablelm", {**TINY["stablelm"][1], "qk_layernorm": True}),
    ("starcoder2", {**TINY["starcoder2"][1], "use_bias": False, "tie_word_embeddings": False}),
    ("seed_oss", {**TINY["seed_oss"][1], "attention_bias": False, "attention_out_bias": True, "mlp_bias": True}),
    ("glm", {**TINY["glm"][1], "attention_bias": False}),
    ("olmo2", {**TINY["olmo2"][1], "attention_bias": True}),
    ("qwen2_moe", {**EXPERTS["qwen2_moe"][1], "qkv_bias": False}),
    ("qwen3_moe", {**EXPERTS["qwen3_moe"][1], "attention_bias": True}),
    ("gpt_oss", {**EXPERTS["gpt_oss"][1], "attention_bias": False}),
]  # fmt: skip


def _meta_model(kind: str, config: Mapping[str, Any]) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))


@pytest.mark.parametrize(("kind", "config", "published"), KNOWN, ids=[f"{k}-{n}" for k, _, n in KNOWN])
def test_the_parameters_of_a_known_shape_are_exact(kind: str, config: dict[str, Any], published: int) -> None:
    model = _meta_model(kind, config)

    counted = count_model(AutoConfig.for_model(kind, **config).to_dict())

    assert counted.num_params == sum(p.numel() for p in model.parameters()) == published


@pytest.mark.parametrize(("kind", "config"), VARIANTS)
def test_every_type_and_variant_is_counted_tensor_by_tensor(kind: str, config: dict[str, Any]) -> None:
    model = _meta_model(kind, config)
    conv1d_to_linear(model)

    counted = count_model(AutoConfig.for_model(kind, **config).to_dict())

    ours = [weight.shape for weight in counted.outside] + [
        weight.shape for weight in counted.block
    ] * counted.shape.num_layers
    assert sorted(ours) == sorted(tuple(p.shape) for p in model.parameters())
    head = model.get_output_embeddings()  # type: ignore[operator]
    assert counted.num_head_params == head.weight.numel()


_LAYER_KEYS = {"gpt2": "n_layer", "gptj": "n_layer", "bloom": "n_layer", "gpt_neo": "num_layers"}


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_keys_that_are_absent_mean_what_transformers_takes_them_for(kind: str) -> None:
    few = {_LAYER_KEYS.get(kind, "num_hidden_layers"): 2}
    more = {"attention_types": [[["global", "local"], 1]]} if kind == "gpt_neo" else {}
    if kind == "ministral":
        few["head_dim"] = 128  # transformers cannot build it without

    counted = count_model({"model_type": kind, **few})

    assert counted.num_params == sum(p.numel() for p in _meta_model(kind, {**few, **more}).parameters())


HEADS = {
    "classification": (AutoModelForSequenceClassification, ClassHead(num_outputs=7, has_bias=False)),
    "ner": (AutoModelForTokenClassification, ClassHead(num_outputs=9, has_bias=True)),
    "qa": (AutoModelForQuestionAnswering, ClassHead(num_outputs=2, has_bias=True)),
}


@pytest.mark.parametrize("task", HEADS)
def test_a_classifier_head_is_counted_tensor_by_tensor_in_every_type_that_has_one(task: str) -> None:
    auto_class, head = HEADS[task]
    counted_types = set()
    for kind, config in VARIANTS:
        made = AutoConfig.for_model(kind, **config, num_labels=head.num_outputs)
        if auto_class._model_mapping.get(type(made), None) is None:
            continue
        with torch.device("meta"):
            model = auto_class.from_config(made)
        conv1d_to_linear(model)

        counted = count_model(made.to_dict(), head)

        blocks = [weight.shape for weight in counted.block] * counted.shape.num_layers
        ours = [*(weight.shape for weight in counted.outside), *blocks]
        assert sorted(ours) == sorted(tuple(p.shape) for p in model.parameters()), kind
        assert counted.num_head_params == find_head(model).weight.numel()
        counted_types.add(kind)
    assert {"gpt2", "llama", "qwen3", "gpt_neox", "falcon", "bloom"} <= counted_types


def test_a_classifier_head_is_whole_on_every_tensor_parallel_rank_and_the_embedding_is_not() -> None:
    config = AutoConfig.for_model("llama", **_llama(64, 2, 4, 96), vocab_size=100).to_dict()
    head = ClassHead(num_outputs=5, has_bias=True)

    whole, halved = count_model(config, head), count_model(config, head).local_outside(2)

    assert whole.num_params == count_model(config).num_params - 100 * 64 + 5 * 65
    assert [weight.shape for weight in halved if weight.component == "head"] == [(5, 64), (5,)]
    assert [weight.shape for weight in halved if weight.component == "embedding"] == [(50, 64)]


def test_every_family_of_the_tensor_parallel_table_is_counted() -> None:
    assert set(FAMILIES) <= set(BLOCKS)
    assert {kind for kind, _ in VARIANTS} == set(BLOCKS)


class _FirstOf:
    """Rank 0 of a group that is not there: shapes need no communication."""

    def __init__(self, size: int) -> None:
        self.rank, self.size = 0, size


@pytest.mark.parametrize(
    ("name", "changes", "degree"),
    [
        *((name, {}, _TP) for name in sorted(TINY)),
        ("llama", {"num_key_value_heads": 2}, 4),
        ("qwen2", {"num_key_value_heads": 1}, 3),
        ("starcoder2", {"num_attention_heads": 4, "num_key_value_heads": 1}, 2),
    ],
)
def test_the_first_ranks_share_under_tensor_parallelism_is_exact(
    name: str, changes: dict[str, Any], degree: int
) -> None:
    from megatune.plan.families import find_family
    from megatune.plan.shape import shape_from_config

    kind, config = TINY[name][0], {**TINY[name][1], **changes}
    full = AutoConfig.for_model(kind, **config).to_dict()
    shape, model = shape_from_config(full), _meta_model(kind, config)
    conv1d_to_linear(model)
    family = find_family(full, shape, degree)
    assert family is not None
    blocks = next(
        m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == shape.num_layers
    )
    for block in blocks:
        cut_block(block, "", family, shape, _FirstOf(degree))  # type: ignore[arg-type]
    cut_vocabulary(model, shape, _FirstOf(degree))  # type: ignore[arg-type]

    counted = count_model(full)

    assert counted.num_local_params(degree) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_a_config_that_does_not_say_whether_the_head_is_tied_is_read_like_transformers_does(
    kind: str,
) -> None:
    assert MODEL_TYPES[kind].ties_head == CONFIG_MAPPING[kind]().tie_word_embeddings


def test_components_add_up_and_are_what_they_say() -> None:
    counted = count_model({"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12,
                           "vocab_size": 50257, "n_positions": 1024})  # fmt: skip
    assert counted.by_component["embedding"] == (50257 + 1024) * 768
    assert counted.by_component["norm"] == 25 * 2 * 768
    assert counted.by_component["head"] == 0
    assert counted.num_matmul_params == 12 * 12 * 768**2


def test_a_type_without_a_row_is_refused_with_the_types_that_have_one() -> None:
    with pytest.raises(PlanError, match=r"'mamba'.*gpt2.*llama"):
        count_model({"model_type": "mamba", "n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": 9})


@pytest.mark.parametrize("name", sorted(EXPERTS))
def test_of_experts_those_that_a_token_has_are_multiplied_in_plan_and_run_alike(
    name: str, tmp_path: Path
) -> None:
    kind, config = EXPERTS[name]
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config)).save_pretrained(tmp_path)

    built = build_model(open_source(tmp_path), dtype=torch.float32)

    counted = count_model(AutoConfig.for_model(kind, **config).to_dict())
    assert counted.num_matmul_params == built.num_matmul_params
    all_experts = sum(w.num_params for w in counted.block if len(w.shape) == 3) * counted.shape.num_layers
    assert counted.num_params > counted.num_matmul_params + all_experts // 2, "two of four experts"


def test_experts_in_some_layers_only_are_not_counted() -> None:
    with pytest.raises(PlanError, match=r"experts in some layers only \(mlp_only_layers = \[0\]"):
        count_model({"model_type": "qwen3_moe", "mlp_only_layers": [0]})


def test_a_block_without_what_the_plan_of_experts_names_is_refused() -> None:
    from megatune.plan.shape import shape_from_config

    kind, config = EXPERTS["qwen3_moe"]
    block: Any = _meta_model(kind, config).get_submodule("model.layers.0")
    block.mlp = torch.nn.Identity()
    shape = shape_from_config(AutoConfig.for_model(kind, **config).to_dict())

    with pytest.raises(ModelError, match=r"neither experts of that name nor a feed-forward layer.*tp_size=1"):
        cut_block(block, "", FAMILIES[kind], shape, _FirstOf(2))  # type: ignore[arg-type]
