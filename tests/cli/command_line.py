"""The real command line as a subprocess, and what a test of it needs: a tiny model with tokenizer, a run file."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))

from tiny_models import write_tiny_model
from tiny_tokenizers import CHAT_TEMPLATE, byte_level, fast

VOCABULARY = 400
SENTENCES = ["The capital of France is Paris.", "2 + 2 = 4", "Once upon a time there was a user."]


@dataclass(frozen=True)
class Done:
    """An ended command."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """All it printed; long lines joined, so that a message can be searched."""
        return " ".join((self.out + self.err).split())


def megatune(*arguments: object, timeout_s: float = 300, **environment: str) -> Done:
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "megatune", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **environment},
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def assert_refused(done: Done, *words: str) -> None:
    """The user's mistake: exit 2, a message with `words`, no traceback."""
    assert done.code == 2, done.text
    assert "Traceback" not in done.text
    assert done.err.splitlines()[-1].strip(), "the message is the last thing on the screen"
    for word in words:
        assert word in done.text


def assert_nothing_looks_complete(output_dir: Path) -> None:
    """A run that failed leaves no checkpoint, export or prepared set under its final name."""
    finished = [
        path
        for pattern in ("checkpoints/step-????????", "export", "prepared/*")
        for path in output_dir.glob(pattern)
    ]
    assert finished == []


def write_model(folder: Path, name: str = "gpt2", **changes: Any) -> Path:
    """A tiny model with a tokenizer whose ids its embedding holds."""
    path = write_tiny_model(name, folder, **{"vocab_size": VOCABULARY, **changes})
    tokenizer = fast(byte_level(VOCABULARY))
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(path)
    return path


def write_run(path: Path, model: Path, rows: Path, output_dir: Path) -> Path:
    sections = {
        "model": {"model_name_or_path": str(model)},
        "data": {"train": str(rows), "max_seq_length": 64},
        "train": {"output_dir": str(output_dir), "max_steps": 4, "learning_rate": 1e-3},
        "precision": "fp32",
        "launch": {"nproc_per_node": 1},
    }
    path.write_text(yaml.safe_dump(sections))
    return path


def steps_of(output_dir: Path) -> list[dict[str, Any]]:
    """The step records of a run folder."""
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == "step"]
