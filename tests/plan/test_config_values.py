"""A config.json that is sparse means what transformers takes it for; one that cannot be is refused by its key."""

import json
import math
from typing import Any

import pytest
from plan_questions import run_of
from transformers import AutoConfig

from megatune.errors import ModelError
from megatune.plan.blocks import BLOCKS
from megatune.plan.config_values import SPELLINGS, checked
from megatune.plan.model_config import read_model_config
from megatune.plan.model_types import MODEL_TYPES
from megatune.plan.shape import shape_from_config
from megatune.plan.weights import count_model

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": 128, "intermediate_size": 96}  # fmt: skip
FFN_KEYS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
BAD_COUNTS = (-2, 0, "abc", "12", True, 1.5, 12.0, math.nan, math.inf, [1], {})


def test_every_type_that_is_counted_has_its_row() -> None:
    assert set(MODEL_TYPES) == set(BLOCKS)


@pytest.mark.parametrize("kind", sorted(MODEL_TYPES))
def test_a_config_of_its_type_alone_is_what_transformers_takes_it_for(kind: str) -> None:
    shape, theirs = shape_from_config({"model_type": kind}), AutoConfig.for_model(kind)
    assert shape.num_layers == theirs.num_hidden_layers
    assert shape.hidden_size == theirs.hidden_size
    assert shape.num_heads == theirs.num_attention_heads
    assert shape.vocab_size == theirs.vocab_size
    assert shape.max_positions == getattr(theirs, "max_position_embeddings", None)
    assert shape.head_size == (
        getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    )
    if kind != "falcon":  # transformers leaves its default of one shared head to the model
        assert shape.num_kv_heads == (
            getattr(theirs, "num_key_value_heads", None) or theirs.num_attention_heads
        )
    ours = checked({"model_type": kind}, "config.json")
    for key in FFN_KEYS:
        assert (ours.get(key) or 4 * shape.hidden_size) == (
            getattr(theirs, key, None) or 4 * shape.hidden_size
        )
    assert count_model({"model_type": kind}).num_params > 0


@pytest.mark.parametrize("kind", sorted(MODEL_TYPES))
@pytest.mark.parametrize("value", BAD_COUNTS, ids=repr)
def test_a_number_that_cannot_be_is_refused_by_its_key_in_every_family(kind: str, value: Any) -> None:
    keys = [key for key in MODEL_TYPES[kind].absent if key != "rotary_dim"]
    for key in keys:
        with pytest.raises(ModelError) as refused:
            count_model({"model_type": kind, key: value})
        assert f"{key} = {json.dumps(value)}; it must be a whole number from 1." in str(refused.value)


@pytest.mark.parametrize("kind", sorted(MODEL_TYPES))
def test_null_is_refused_where_transformers_needs_a_number(kind: str) -> None:
    for name in ("num_layers", "hidden_size", "num_heads", "vocab_size", "max_positions"):
        for key in set(SPELLINGS[name]) & set(MODEL_TYPES[kind].absent):
            with pytest.raises(ModelError, match=f"{key} = null"):
                shape_from_config({"model_type": kind, key: None})
    for key in ("num_key_value_heads", "head_dim", *FFN_KEYS):
        if (kind, key) == ("seed_oss", "head_dim"):
            continue  # its 80 heads do not divide its 4096 features
        assert count_model({"model_type": kind, key: None}).num_params > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 7}, ["hidden_size = 64 is no multiple of the 7 attention heads"]),
        ({"num_key_value_heads": 3}, ["8 attention heads are no multiple of the 3 key-value heads"]),
        ({"tie_word_embeddings": "yes"}, ['tie_word_embeddings = "yes"; it must be true or false']),
        ({"attention_dropout": math.nan}, ["attention_dropout = NaN; it must be a number from 0 to 1"]),
        ({"attention_dropout": "0.1"}, ['attention_dropout = "0.1"']),
        ({"model_type": 5}, ["model_type = 5; it must be a name"]),
        ({"model_type": ["llama"]}, ["model_type"]),
        ({"text_config": "none"}, ['text_config = "none"; it must be an object']),
        ({"text_config": {"model_type": "llama", "vocab_size": -1}}, ["vocab_size = -1"]),
        ({"num_hidden_layers": -2, "hidden_size": "abc"}, ["has 2 problems", "layers = -2", 'size = "abc"']),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_file_key_value_and_what_is_allowed(
    tmp_path: Any, changes: dict[str, Any], words: list[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, **changes}))
    run = run_of(model={"model_name_or_path": str(tmp_path)})
    with pytest.raises(ModelError) as refused:
        read_model_config(run)
    for word in (str(path), *words):
        assert word in str(refused.value)


def test_what_another_type_means_by_its_keys_is_its_own() -> None:
    shape = shape_from_config(
        {**LLAMA, "model_type": "foreign", "hidden_size": 65, "bias": "none", "dropout": 7}
    )
    assert (shape.hidden_size, shape.max_positions) == (65, None)


def test_a_default_does_not_stand_beside_another_spelling_of_its_key() -> None:
    shape = shape_from_config({"model_type": "gpt2", "num_hidden_layers": 3, "hidden_size": 24})
    assert (shape.num_layers, shape.hidden_size, shape.num_heads) == (3, 24, 12)
