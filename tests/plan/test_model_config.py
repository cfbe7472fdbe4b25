"""The configuration that a plan is made from has the vocabulary that the run will begin with."""

import json

import pytest

from megatune.config.run import Run
from megatune.plan.model_config import read_model_config


@pytest.mark.parametrize(
    ("section", "vocab_size"),
    [
        (None, 100),
        ({"add_tokens": ["<a>", "<b>"], "add_special_tokens": ["<c>"]}, 103),
        ({"train": "sentencepiece", "vocab_size": 8000}, 8000),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_tokens_that_are_trained_or_added_are_planned_for(tmp_path, section, vocab_size, nested):
    sizes = {"vocab_size": 100, "hidden_size": 8, "num_attention_heads": 2}
    config = {"model_type": "llama", **({"text_config": sizes} if nested else sizes)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    run = Run.model_validate(
        {
            "model": {"model_name_or_path": str(tmp_path)},
            "data": {"train": "a.jsonl"},
            "train": {"output_dir": "run"},
            "tokenizer": section,
        }
    )
    found = read_model_config(run)
    assert (found["text_config"] if nested else found)["vocab_size"] == vocab_size
    assert found["model_type"] == "llama"
