"""What is refused before any weight is read, and with which words."""

from typing import Any

import pytest

from megatune.errors import ModelError
from megatune.plan.families import FAMILIES, find_family, weight_cut
from megatune.plan.shape import ModelShape, shape_from_config

GQA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


def _shape(**changes: Any) -> tuple[dict[str, Any], ModelShape]:
    config = {**GQA, **changes}
    return config, shape_from_config(config)


def test_a_degree_of_one_needs_no_plan() -> None:
    config, shape = _shape(model_type="never_heard_of")
    assert find_family(config, shape, 1) is None


def test_an_unknown_family_is_refused_and_told_what_works() -> None:
    config, shape = _shape(model_type="never_heard_of")
    with pytest.raises(
        ModelError, match=r"no tensor-parallel plan for model type 'never_heard_of'.*tp_size=1"
    ):
        find_family(config, shape, 2)


def test_ranks_share_key_value_heads_but_not_query_heads() -> None:
    config, shape = _shape()
    for degree in (2, 4, 8):
        assert find_family(config, shape, degree) is FAMILIES["llama"]
    with pytest.raises(ModelError, match=r"8 attention head\(s\), so 1 rank\(s\).*from 1 to 8"):
        find_family(config, shape, 9)


@pytest.mark.parametrize("kind", ["phi3", "olmo2"])
def test_families_whose_key_value_heads_cannot_be_shared_say_so(kind: str) -> None:
    config, shape = _shape(model_type=kind)
    assert find_family(config, shape, 2) is FAMILIES[kind]
    with pytest.raises(
        ModelError, match=r"2 key-value head\(s\), so 2 rank\(s\).*cannot share one.*from 1 to 2"
    ):
        find_family(config, shape, 4)


@pytest.mark.parametrize("falcon", [{"alibi": True}, {"multi_query": True}])
def test_falcons_that_cannot_be_cut_are_refused(falcon: dict[str, Any]) -> None:
    config, shape = _shape(model_type="falcon", num_key_value_heads=None, **falcon)
    with pytest.raises(ModelError, match=r"tp_size is 2.*tp_size=1"):
        find_family(config, shape, 2)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"slow_but_exact": True, "pretraining_tp": 4}, True),
        ({"slow_but_exact": True, "pretraining_tp": 1}, False),
        ({"slow_but_exact": False, "pretraining_tp": 4}, False),
    ],
)
def test_a_bloom_that_slices_whole_weights_is_refused(changes: dict[str, Any], refused: bool) -> None:
    config, shape = _shape(model_type="bloom", num_key_value_heads=None, **changes)
    if not refused:
        assert find_family(config, shape, 2) is FAMILIES["bloom"]
        return
    with pytest.raises(ModelError, match=r"slow_but_exact with pretraining_tp = 4.*Use parallel.tp_size=1"):
        find_family(config, shape, 2)
    assert find_family(config, shape, 1) is None


@pytest.mark.parametrize(("kind", "key"), [("cohere", "use_qk_norm"), ("stablelm", "qk_layernorm")])
def test_norms_with_weights_for_each_head_are_refused(kind: str, key: str) -> None:
    config, shape = _shape(model_type=kind, **{key: True})
    with pytest.raises(ModelError, match=rf"tp_size is 2: this model has {key}.*Use parallel.tp_size=1"):
        find_family(config, shape, 2)
    config, shape = _shape(model_type=kind, **{key: False})
    assert find_family(config, shape, 2) is FAMILIES[kind]


def test_a_weight_that_does_not_fit_the_plan_is_refused() -> None:
    _, shape = _shape()
    with pytest.raises(ModelError, match=r"has 65 elements along dimension 0.*expects 64"):
        weight_cut(("q",), shape, dim=0, full_size=65, name="q_proj.weight")


def test_a_config_without_layers_is_no_language_model() -> None:
    with pytest.raises(ModelError, match=r"no num_layers"):
        shape_from_config(
            {"model_type": "vision", "hidden_size": 8, "num_attention_heads": 1, "vocab_size": 3}
        )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
            (12, 768, 12, 12),
        ),
        ({**GQA}, (2, 64, 8, 2)),
        ({**GQA, "model_type": "falcon", "multi_query": True}, (2, 64, 8, 1)),
        ({**GQA, "text_config": GQA, "model_type": "outer"}, (2, 64, 8, 2)),
    ],
)
def test_every_spelling_of_a_shape_is_read(config: dict[str, Any], expected: tuple[int, ...]) -> None:
    shape = shape_from_config(config)
    assert (shape.num_layers, shape.hidden_size, shape.num_heads, shape.num_kv_heads) == expected
