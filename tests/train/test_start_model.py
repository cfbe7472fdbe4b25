"""A run that trains its tokenizer, or adds tokens: the model it begins with, and that it keeps them to its end."""

import json
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from parity_steps import tiny_run
from tiny_models import write_tiny_model, write_tiny_model_with_images
from tiny_runs import VOCABULARY, metrics_of, train, write_model_with_tokenizer, write_run
from tiny_tokenizers import byte_level, fast
from transformers import AutoModelForCausalLM, AutoTokenizer
from worlds import Worlds

from megatune.errors import ConfigError, ModelError
from megatune.model.build import build_model
from megatune.model.source import GROWTH_FILE
from megatune.train import start_model
from megatune.train.inputs import open_model, open_tokenizer
from megatune.train.start_model import ready_model

sys.path.insert(0, str(Path(__file__).parent))
from start_model_cases import train_with_ids

ADDED = ["<red>", "<green>", "<blue>", *(f"<{number}>" for number in range(9))]
KNOWN = len(fast(byte_level(VOCABULARY)))
"""Tokens of the tiny models' tokenizer; their embeddings have a few rows more."""
ROWS = KNOWN + len(ADDED)
assert ROWS > VOCABULARY


@pytest.fixture
def run_with(tmp_path, session_folder):
    """`run_with(section, name, **changes)`: a run in memory below tmp_path, of a tiny model."""

    def make(section, name="gpt2", **changes):
        rows = tmp_path / "rows.jsonl"
        words = ["red", "green", "blue", "orange", "violet", "yellow"]
        texts = [" ".join(words[(i * k) % 6] + words[(i + k) % 6] for k in range(1, 7)) for i in range(200)]
        rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        folder = write_model_with_tokenizer(session_folder, name)
        model = {"model_name_or_path": str(folder), **changes.pop("model", {})}
        train_section = {"output_dir": str(tmp_path / "run")}
        data = {"train": str(rows), "max_seq_length": 64}
        run = {"model": model, "data": data, "train": train_section, "tokenizer": section}
        return tiny_run(str(folder), **{**run, **changes})

    return make


def embeddings(model):
    return model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj"])
def test_added_tokens_begin_at_the_mean_and_the_others_stay_as_they_were(run_with, name):
    run = run_with({"add_tokens": ADDED[:2], "add_special_tokens": ADDED[2:]}, name)
    ready_model(run)
    source = open_model(run)
    tokenizer = open_tokenizer(run, source)
    assert tokenizer("<red>").input_ids == [KNOWN]
    assert tokenizer.decode(tokenizer("a<blue>").input_ids, skip_special_tokens=True) == "a"
    before = AutoModelForCausalLM.from_pretrained(run.model.model_name_or_path, dtype=torch.float32)
    grown = build_model(source, dtype=torch.float32).model
    for old, new in zip(embeddings(before), embeddings(grown), strict=True):
        assert new.shape[0] == ROWS
        assert torch.equal(new[:KNOWN], old[:KNOWN])
        mean = old[:KNOWN].mean(dim=0, keepdim=True)
        assert torch.allclose(new[KNOWN:], mean.expand(len(ADDED), -1), atol=1e-6)
    if name == "gptj":  # its head has a bias
        old, new = before.get_output_embeddings().bias, grown.get_output_embeddings().bias
        assert torch.allclose(new[KNOWN:], old[:KNOWN].mean().expand(len(ADDED)), atol=1e-6)


def test_a_vocabulary_that_config_json_leaves_to_its_type_is_known(run_with, session_folder, tmp_path):
    folder = tmp_path / "sparse"
    shutil.copytree(write_tiny_model_with_images(session_folder), folder)
    fast(byte_level(VOCABULARY)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["vocab_size"]  # as in the config.json of Gemma 3, 4 B
    (folder / "config.json").write_text(json.dumps(config))

    run = run_with({"add_tokens": ADDED}, model={"model_name_or_path": str(folder)})
    ready_model(run)

    assert open_model(run).shape.vocab_size == 262208


def test_the_stored_weights_are_not_changed(run_with):
    run = run_with({"add_tokens": ADDED})
    path = Path(run.model.model_name_or_path) / "model.safetensors"
    before = path.read_bytes()
    ready_model(run)
    build_model(open_model(run), dtype=torch.float32)
    assert path.read_bytes() == before


def test_tokens_that_fit_into_spare_rows_begin_at_the_mean_too(run_with, session_folder):
    spare = write_tiny_model("llama", session_folder, vocab_size=VOCABULARY + 28)
    fast(byte_level(VOCABULARY)).save_pretrained(spare)
    run = run_with({"add_tokens": ADDED}, model={"model_name_or_path": str(spare)})
    ready_model(run)
    before = AutoModelForCausalLM.from_pretrained(spare, dtype=torch.float32)
    grown = build_model(open_model(run), dtype=torch.float32).model
    for old, new in zip(embeddings(before), embeddings(grown), strict=True):
        assert new.shape == old.shape
        mean = old[:KNOWN].mean(dim=0, keepdim=True)
        assert torch.allclose(new[KNOWN:], mean.expand(len(new) - KNOWN, -1), atol=1e-6)


@pytest.mark.world
@pytest.mark.parametrize(("tp", "dp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_every_layout_trains_the_added_tokens_like_one_process(worlds: Worlds, run_with, tp, dp):
    folders = []
    for name in ("gpt2", "llama"):  # a tied head, and one of its own
        run = run_with({"add_tokens": ADDED}, name)
        ready_model(run)
        kept = Path(run.train.output_dir).with_name(f"start-{name}")
        (Path(run.train.output_dir) / "model").rename(kept)
        folders.append(str(kept))
    expected = worlds.run(1, train_with_ids, folders, 0, 0, ROWS)[0]
    found = worlds.run(tp * dp, train_with_ids, folders, tp, dp, ROWS)[0]
    for (losses, norms, weights), (own_losses, own_norms, own_weights) in zip(expected, found, strict=True):
        assert own_losses == pytest.approx(losses, rel=1e-5)
        assert own_norms == pytest.approx(norms, rel=1e-4)
        for key, weight in weights.items():
            assert abs(own_weights[key] - weight).max() < 1e-5, key


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_trained_tokenizer_starts_a_model_of_its_size(run_with, model_type):
    section = {"train": "sentencepiece", "vocab_size": 290, "model_type": model_type}
    run = run_with(section, model={"initialize": "random"})
    ready_model(run)
    source = open_model(run)
    tokenizer = open_tokenizer(run, source)
    assert source.shape.vocab_size == len(tokenizer) == 290
    text = "redgreen violet\n x"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    model = build_model(source, dtype=torch.float32, initialize="random").model
    assert model.get_input_embeddings().num_embeddings == 290
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_the_folder_is_made_once_and_again_when_the_rows_or_the_settings_change(run_with, tmp_path):
    section = {"train": "sentencepiece", "vocab_size": 290}
    run = run_with(section, model={"initialize": "random"})
    made = tmp_path / "run/model/config.json"
    ready_model(run)
    first = made.stat().st_mtime_ns
    ready_model(run)
    assert made.stat().st_mtime_ns == first
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text() + json.dumps({"text": "green"}) + "\n")
    ready_model(run)
    assert made.stat().st_mtime_ns != first
    ready_model(run_with({**section, "vocab_size": 280}, model={"initialize": "random"}))
    assert json.loads(made.read_text())["vocab_size"] == 280
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"model", "data-hashes.json"}


def test_a_sentencepiece_file_can_be_the_tokenizer(run_with, tmp_path):
    section = {"train": "sentencepiece", "vocab_size": 290}
    run = run_with(section, model={"initialize": "random"})
    ready_model(run)
    path = tmp_path / "run/model/sentencepiece.model"
    other = run_with(None, model={"tokenizer": str(path)})
    assert len(open_tokenizer(other, open_model(other))) == 290


@pytest.mark.parametrize(
    ("section", "error", "problem"),
    [
        ({"add_tokens": ["a"]}, ConfigError, "adds 'a', which it has already"),
        (
            {"train": "sentencepiece", "vocab_size": 100_000},
            Exception,
            r"cannot make 100000 pieces.*tokenizer\.vocab",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_and_leaves_nothing(run_with, tmp_path, section, error, problem):
    run = run_with(section, model={"initialize": "random"})
    with pytest.raises(error, match=problem):
        ready_model(run)
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"data-hashes.json"}


@pytest.mark.parametrize("origins", [("a", "a", "a", "a"), ("a", "b", "a", "c")])
def test_processes_that_make_the_folder_at_once_leave_one_that_is_whole(tmp_path, origins):
    target = tmp_path / "model"
    for round_number in range(40):
        begin = threading.Barrier(len(origins))

        def put(at, begin=begin, scratch=tmp_path / str(round_number)):
            made = scratch / str(at) / "model"
            made.mkdir(parents=True)
            (made / GROWTH_FILE).write_text(json.dumps({"made_from": origins[at]}))
            begin.wait(timeout=60)
            start_model._put(made, target, origins[at], made.parent)

        with ThreadPoolExecutor(len(origins)) as pool:
            list(pool.map(put, range(len(origins))))
        assert json.loads((target / GROWTH_FILE).read_text())["made_from"] in origins


def test_a_rank_without_the_folder_says_what_makes_it(run_with):
    with pytest.raises(ModelError, match="made by `megatune prepare`"):
        open_model(run_with({"add_tokens": ADDED}))


@pytest.mark.world
@pytest.mark.parametrize("kind", ["train", "add"])
def test_a_run_keeps_its_tokens_through_resume_and_export(worlds: Worlds, tmp_path, session_folder, kind):
    model = write_model_with_tokenizer(session_folder)
    trained = {"train": "sentencepiece", "vocab_size": 300}
    section, initialize = (trained, "random") if kind == "train" else ({"add_tokens": ADDED}, "pretrained")
    run_file = write_run(tmp_path / "run.yaml", model, checkpoint={"export_at_end": True}, tokenizer=section)
    size = 300 if kind == "train" else ROWS
    overrides = [f"model.initialize={initialize}"]
    first = worlds.run(2, train, str(run_file), [*overrides, "train.max_steps=2"])
    again = worlds.run(2, train, str(run_file), [*overrides, "train.max_steps=4"])
    assert first + again == [0] * 4
    assert [step["step"] for step in metrics_of(tmp_path / "run", "step")] == [1, 2, 3, 4]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "run/export")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/export")
    assert (
        exported.get_input_embeddings().num_embeddings == exported.config.vocab_size == len(tokenizer) == size
    )
    assert not (tmp_path / "run/export/megatune-start.json").exists()
    start = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    assert tokenizer("one <red> two").input_ids == start("one <red> two").input_ids
