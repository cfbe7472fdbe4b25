"""No pickle and no program in a model's folder is ever run, whatever it is called."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from parity_steps import tiny_run
from tiny_runs import write_model_with_tokenizer

from megatune.errors import ModelError
from megatune.model.build import build_model
from megatune.model.source import open_source
from megatune.train.inputs import open_tokenizer

NAMES = (
    "pytorch_model.bin",
    "training_args.bin",
    "optimizer.pt",
    "rng_state.pth",
    "vocab.pkl",
    "tokenizer.pkl",
)


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.mark, "a model's folder has run code")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@pytest.fixture
def model(session_folder: Path, tmp_path: Path, mark: Path) -> Path:
    """A model with its tokenizer, and a bomb under every name that somebody loads."""
    folder = Path(shutil.copytree(write_model_with_tokenizer(session_folder), tmp_path / "model"))
    for name in NAMES:
        torch.save({"x": Bomb(mark)}, folder / name)
    return folder


def open_all(folder: Path) -> None:
    source = open_source(folder)
    open_tokenizer(tiny_run(str(folder)), source)
    build_model(source, dtype=torch.float32)


def add_program(folder: Path, mark: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').write('run')\nclass Evil: ...\n")
    for name, keys in {
        "config.json": ("AutoConfig", "AutoModelForCausalLM"),
        "tokenizer_config.json": ("AutoTokenizer",),
    }.items():
        held = json.loads((folder / name).read_text())
        value = ["evil.Evil", "evil.Evil"] if name.startswith("tokenizer") else "evil.Evil"
        held["auto_map"] = dict.fromkeys(keys, value)
        (folder / name).write_text(json.dumps(held))


def test_the_bombs_go_off_where_pickles_are_trusted(model: Path, mark: Path) -> None:
    torch.load(model / NAMES[0], weights_only=False)
    assert mark.exists()


def test_a_model_beside_bombs_is_loaded_and_none_goes_off(model: Path, mark: Path) -> None:
    open_all(model)
    assert not mark.exists()


def test_weights_that_are_pickles_alone_are_refused_and_not_run(model: Path, mark: Path) -> None:
    for path in model.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*Pickled weights can run code"):
        open_all(model)
    assert not mark.exists()


def test_weights_that_are_a_pickle_under_the_other_name_are_refused_and_not_run(
    model: Path, mark: Path
) -> None:
    (model / "model.safetensors").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ModelError, match=r"model\.safetensors is not a whole safetensors file"):
        open_all(model)
    assert not mark.exists()


def test_a_tokenizer_that_is_a_pickle_is_refused_and_not_run(model: Path, mark: Path) -> None:
    (model / "tokenizer.json").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ModelError, match="tokenizer"):
        open_all(model)
    assert not mark.exists()


def test_a_program_that_the_folder_names_is_not_run_unasked(model: Path, mark: Path) -> None:
    add_program(model, mark)
    open_all(model)
    assert not mark.exists()
