"""An export holds all that a model's files hold: buffers beside parameters, and the class that was trained."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from other_models import write_other_model
from safetensors.torch import load_file, save_file
from tiny_models import write_tiny_model
from tiny_runs import VOCABULARY, metrics_of, train, write_run
from tiny_tokenizers import byte_level, fast
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from worlds import Worlds

pytestmark = pytest.mark.world

EXPORTED = {"parallel": {"tp_size": 1}, "checkpoint": {"export_at_end": True}, "train": {"max_steps": 3}}


def with_tokenizer(model: Path) -> Path:
    fast(byte_level(VOCABULARY)).save_pretrained(model)
    return model


def with_buffers(model: Path) -> dict[str, torch.Tensor]:
    """Give the buffers in the files of `model` values that no fresh model has; they, by name."""
    path = model / "model.safetensors"
    stored = load_file(path)
    built = AutoModelForCausalLM.from_pretrained(model)
    parameters = {name for name, _ in built.named_parameters(remove_duplicate=False)}
    changed = {name: stored[name] + 0.37 for name in built.state_dict() if name not in parameters}
    assert changed, "this type has none"
    save_file({**stored, **changed}, path, metadata={"format": "pt"})
    return changed


@pytest.mark.parametrize(
    ("model_type", "precision"), [("deepseek_v3", "fp32"), ("deepseek_v3", "bf16"), ("gemma4_text", "fp32")]
)
def test_buffers_are_exported_as_they_were_in_their_own_dtype(
    worlds: Worlds, tmp_path: Path, model_type: str, precision: str
) -> None:
    model = with_tokenizer(write_other_model(model_type, tmp_path, VOCABULARY))
    buffers = with_buffers(model)
    run_file = write_run(tmp_path / "run.yaml", model, **EXPORTED, precision=precision)

    assert worlds.run(2, train, str(run_file), []) == [0, 0]

    export = tmp_path / "run" / "export"
    stored = load_file(export / "model.safetensors")
    assert set(buffers) <= set(stored)
    assert not (export / "buffers.safetensors").exists()
    for name, value in buffers.items():
        assert torch.equal(stored[name], value)
        assert stored[name].dtype == value.dtype
    _, info = AutoModelForCausalLM.from_pretrained(export, output_loading_info=True)
    assert not info["missing_keys"]


def test_of_a_folder_with_a_tower_the_language_model_is_exported_as_what_it_is(
    worlds: Worlds, tmp_path: Path
) -> None:
    config = transformers.AutoConfig.from_pretrained(
        write_other_model("llama4", tmp_path / "text", VOCABULARY)
    )
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48,
             "image_size": 28, "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32,
             "projector_output_dim": 32}  # fmt: skip
    whole = transformers.AutoConfig.for_model("llama4", text_config=config.to_dict(), vision_config=tower)
    model = tmp_path / "model"
    AutoModelForImageTextToText.from_config(whole).save_pretrained(model)
    run_file = write_run(tmp_path / "run.yaml", with_tokenizer(model), **EXPORTED)

    assert worlds.run(2, train, str(run_file), []) == [0, 0]

    export = tmp_path / "run" / "export"
    said: dict[str, Any] = json.loads((export / "config.json").read_text(encoding="utf-8"))
    assert said["architectures"] == ["Llama4ForCausalLM"]
    loaded, info = getattr(transformers, said["architectures"][0]).from_pretrained(
        export, output_loading_info=True
    )
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert loaded.config.vocab_size == VOCABULARY


def test_a_packed_run_is_evaluated_again_with_the_masks_it_was_trained_with(
    worlds: Worlds, tmp_path: Path
) -> None:
    model = with_tokenizer(write_tiny_model("mpt", tmp_path, vocab_size=VOCABULARY))
    run_file = write_run(tmp_path / "run.yaml", model, **EXPORTED)
    assert worlds.run(2, train, str(run_file), []) == [0, 0]

    command = [sys.executable, "-m", "megatune", "evaluate", str(tmp_path / "run"), "--split", "validation"]
    found = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)

    last = metrics_of(tmp_path / "run", "eval")[-1]
    assert json.loads(found.stdout)["metrics"]["loss"] == pytest.approx(last["loss"], rel=1e-5)


def test_a_type_that_cannot_compute_its_blocks_again_is_refused(tmp_path: Path) -> None:
    from megatune.errors import ModelError
    from megatune.model.build import build_model
    from megatune.model.source import open_source

    model = write_other_model("ctrl", tmp_path)
    with pytest.raises(ModelError, match="CTRLLMHeadModel of transformers cannot compute its blocks again"):
        build_model(open_source(model), dtype=torch.float32, gradient_checkpointing=True)
