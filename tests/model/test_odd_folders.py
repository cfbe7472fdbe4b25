"""Model folders whose parts contradict each other: refused with the file or the weight, or told."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import EXPERTS, write_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from megatune.errors import ModelError
from megatune.model.build import BuiltModel, build_model
from megatune.model.left_out import left_out_notes
from megatune.model.source import open_source


@pytest.fixture
def folder(session_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(write_tiny_model("llama", session_folder), tmp_path / "model"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def built(folder: Path) -> BuiltModel:
    return build_model(open_source(folder), dtype=torch.float32)


def test_weights_that_config_json_has_no_place_for_are_told(folder: Path) -> None:
    assert list(left_out_notes(built(folder))) == []
    change_config(folder, num_hidden_layers=1)

    (note,) = left_out_notes(built(folder))

    assert "9 weights of the model's files have no place" in note
    assert "model.layers.1.input_layernorm.weight" in note


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("intermediate_size", 64, "model.layers.0.mlp.down_proj.weight: "),
        ("vocab_size", 150, "[101, 64] in the files, [150, 64] by config.json"),
        ("vocab_size", 50, "by config.json"),
    ],
)
def test_sizes_that_contradict_the_weights_are_refused_by_name(
    folder: Path, key: str, value: int, words: str
) -> None:
    change_config(folder, **{key: value})
    with pytest.raises(ModelError, match=r"have other sizes than config\.json says") as refused:
        built(folder)
    assert words in str(refused.value)


def test_code_of_a_folder_is_not_run_unasked_and_the_key_is_named(folder: Path) -> None:
    change_config(folder, model_type="own", auto_map={"AutoConfig": "own_config.OwnConfig"})
    (folder / "own_config.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(ModelError, match=r"own_config\.py.*set model\.trust_remote_code=true"):
        open_source(folder)


def test_a_file_that_was_cut_off_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        ModelError, match=r"model\.safetensors is not a whole safetensors file: \d+ bytes, where"
    ):
        built(folder)


@pytest.mark.parametrize("header", [b"[1]", b'{"w": 1}', b'{"w": {"dtype": "F32", "data_offsets": []}}'])
def test_a_header_that_is_another_json_is_refused_by_its_file(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError, match=r"model\.safetensors is not a whole safetensors file"):
        built(folder)


def test_the_routers_own_loss_is_told_where_it_is_asked_for_and_not_trained(tmp_path: Path) -> None:
    kind, config = EXPERTS["mixtral"]
    for asked in (False, True):
        full = AutoConfig.for_model(kind, **config, output_router_logits=asked)
        AutoModelForCausalLM.from_config(full).save_pretrained(tmp_path / str(asked))
        assert len(list(left_out_notes(built(tmp_path / str(asked))))) == asked


def test_an_export_of_quantized_weights_does_not_ask_for_quantization(folder: Path, tmp_path: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "fp8"})
    target = tmp_path / "export"
    target.mkdir()
    open_source(folder).copy_without_weights(target)
    assert "quantization_config" not in json.loads((target / "config.json").read_text())


def test_weights_that_are_no_numbers_are_blamed_before_training(folder: Path) -> None:
    from parity_steps import plain_engine, tiny_run

    from megatune.evaluate.loss_check import choose_loss

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="Some of the stored weights are not finite"):
        choose_loss(plain_engine(tiny_run(str(folder), 1)), "auto")
