"""A tiny model with a tokenizer, rows and a run file for the tests of the command line."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import SENTENCES, write_model, write_run


@pytest.fixture(scope="session")
def tiny_gpt2(session_folder: Path) -> Path:
    return write_model(session_folder, bos_token_id=0, eos_token_id=0)


@pytest.fixture
def model_copy(tiny_gpt2: Path, tmp_path: Path) -> Path:
    """A model folder to break."""
    return Path(shutil.copytree(tiny_gpt2, tmp_path / "model"))


@pytest.fixture(scope="session")
def rows_file(session_folder: Path) -> Path:
    path = session_folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES * 8))
    return path


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def run_file(tiny_gpt2: Path, rows_file: Path, output_dir: Path, tmp_path: Path) -> Path:
    """A run of four fp32 steps on one rank that is right in everything."""
    return write_run(tmp_path / "run.yaml", tiny_gpt2, rows_file, output_dir)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of submitted runs, and all else that megatune keeps, of this test alone."""
    monkeypatch.setenv("MEGATUNE_CACHE", str(tmp_path / "cache"))
