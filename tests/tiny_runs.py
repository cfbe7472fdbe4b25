"""Whole runs on tiny models: what `megatune train` needs on disk, and what ranks of a test world do with it."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent / "data"))

from parity_steps import entered, world_of
from tiny_models import write_tiny_model
from tiny_tokenizers import byte_level, fast

VOCABULARY = 320
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "red", "green", "blue", "fast", "slow"]


def write_model_with_tokenizer(folder: Path, name: str = "gpt2", **changes: Any) -> Path:
    """A tiny model whose vocabulary is its tokenizer's."""
    path = write_tiny_model(name, folder, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **changes)
    if not (path / "tokenizer.json").exists():
        fast(byte_level(VOCABULARY)).save_pretrained(path)
    return path


def write_rows(path: Path, num_rows: int, *, seed: int = 0) -> Path:
    """Rows of 3 to 12 words, told apart by their number."""
    lines = []
    for row in range(num_rows):
        length = 3 + (row * 7 + seed) % 10
        words = [WORDS[(row * (k + 2) + k + seed) % len(WORDS)] for k in range(length)]
        lines.append(json.dumps({"text": f"{row} {' '.join(words)}"}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_run(path: Path, model: Path, **changes: Any) -> Path:
    """A run file of fp32 AdamW steps at tp=2 beside `path`; `changes` are sections' entries."""
    rows = write_rows(path.parent / "train.jsonl", 60)
    held_out = write_rows(path.parent / "valid.jsonl", 13, seed=5)
    sections: dict[str, Any] = {
        "model": {"model_name_or_path": str(model)},
        "data": {"train": str(rows), "validation": str(held_out), "max_seq_length": 64, "packing": True},
        "train": {
            "output_dir": str(path.parent / path.stem),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "weight_decay": 0.1,
        },
        "parallel": {"tp_size": 2},
        "precision": "fp32",
        "checkpoint": {"export_at_end": False},
    }
    for key, value in changes.items():
        sections[key] = {**sections.get(key, {}), **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path


def metrics_of(output_dir: Path, event: str) -> list[dict[str, Any]]:
    """The records of one kind, in order."""
    lines = (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


def train(run_file: str, overrides: list[str], interrupt: tuple[int, int] | None = None) -> int:
    """`train_rank` inside the process group of this test world. Returns the exit code.

    `interrupt`: (rank, call of train_step at which that rank alone gets a SIGTERM).
    """
    from megatune.config import load_run
    from megatune.launch.ranks import discover_rank
    from megatune.train import loop
    from megatune.train import rank as rank_module

    info = discover_rank()
    assert info is not None
    originals = rank_module.enter, rank_module.make_world, rank_module.leave, loop.train_step
    calls = 0

    def step_with_signal(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if interrupt == (info.rank, calls):
            os.kill(os.getpid(), signal.SIGTERM)
        return originals[3](*args, **kwargs)

    rank_module.enter = lambda rank, timeout_s: entered()  # noqa: ARG005
    rank_module.make_world = lambda degree, device, timeout_s: world_of(degree)  # noqa: ARG005
    rank_module.leave = lambda: None
    loop.train_step = step_with_signal
    try:
        return rank_module.train_rank(load_run(Path(run_file), overrides), info)
    finally:
        rank_module.enter, rank_module.make_world, rank_module.leave, loop.train_step = originals


def train_failing(run_file: str, overrides: list[str]) -> str:
    """The words of the MegatuneError that ends the run on this rank."""
    from megatune.errors import MegatuneError

    try:
        code = train(run_file, overrides)
    except MegatuneError as error:
        return f"{type(error).__name__}: {error}"
    return f"no error, exit code {code}"
