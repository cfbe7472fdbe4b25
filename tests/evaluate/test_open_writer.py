"""What can write, and what cannot."""

from pathlib import Path

import pytest
from tiny_models import write_tiny_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from megatune.errors import ModelError
from megatune.evaluate.decoding import Decoding
from megatune.evaluate.writer import open_writer


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_classifier_writes_no_text_though_its_trunk_could(tmp_path: Path, name: str) -> None:
    config = AutoConfig.from_pretrained(write_tiny_model(name, tmp_path), num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "head")

    words = r"is a classifier \(\w+ForSequenceClassification\), which writes no text"
    with pytest.raises(ModelError, match=words), open_writer(tmp_path / "head", Decoding(max_new_tokens=2)):
        pass
