"""Run files written in a test, and what loading them says."""

from collections.abc import Callable
from pathlib import Path

import pytest

from megatune.config import LoadedRun, load_run
from megatune.errors import ConfigError

MINIMAL = """\
model: {model_name_or_path: gpt2}
data: {train: train.jsonl}
train: {output_dir: runs/x}
"""

Load = Callable[..., LoadedRun]
Refusal = Callable[..., list[str]]


@pytest.fixture
def minimal() -> str:
    """The shortest run file: three lines, one for each section with required keys."""
    return MINIMAL


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a run file given as text (by default the minimal one), in an empty current directory."""
    monkeypatch.chdir(tmp_path)

    def load_text(text: str = MINIMAL, *overrides: str) -> LoadedRun:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_run(path, overrides)

    return load_text


@pytest.fixture
def refusal(load: Load) -> Refusal:
    """The problems with which a run file, given as text, is refused."""

    def refuse(text: str = MINIMAL, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as refused:
            load(text, *overrides)
        return refused.value.problems

    return refuse
