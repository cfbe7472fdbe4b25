"""The model that a checkpoint is converted for has the head that its config.json names."""

from pathlib import Path

import pytest
import torch
from tiny_models import write_tiny_model
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from megatune.checkpoint.convert.target_model import describe_target

HEADS = [AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForQuestionAnswering]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", HEADS)
def test_a_classifier_head_is_among_the_parameters(tmp_path: Path, name: str, kind: type) -> None:
    config = AutoConfig.from_pretrained(write_tiny_model(name, tmp_path), num_labels=2)
    model = kind.from_config(config)  # type: ignore[attr-defined]
    model.save_pretrained(tmp_path / "head")

    found = describe_target(tmp_path / "head")

    assert found.shapes == {each: tuple(value.shape) for each, value in model.named_parameters()}


def test_without_a_named_class_it_is_a_language_model(tmp_path: Path) -> None:
    folder = write_tiny_model("llama", tmp_path)
    assert "lm_head.weight" in describe_target(folder).shapes
    assert all(isinstance(size, int) for shape in describe_target(folder).shapes.values() for size in shape)
    assert torch.get_default_device().type != "meta"
