"""What a checkpoint folder holds, by name, and which folders are whole.

`checkpoints/step-00000100/`:
  `manifest.json`            written last; its presence and the sizes in it make the folder whole
  `training.json`            step, data position, counters: what all ranks share
  `weights.json`             every parameter's whole shape, how it is cut, what export transposes
  `model/`                   config.json and the tokenizer, so that export needs nothing else
  `rank-00000.safetensors`   `kind/parameter` -> flat fp32 piece, `rng/...` -> generator states
  `rank-00000.json`          optimizer counters, loss scale, Python's and numpy's generators
No file is a pickle: reading a checkpoint runs no code from it.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatune.errors import CheckpointError

SCHEMA = 1
MANIFEST = "manifest.json"
TRAINING = "training.json"
WEIGHTS = "weights.json"
MODEL_FOLDER = "model"
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a model is spread over ranks; rank = data_rank * tensor_parallel + tensor_rank."""

    data_parallel: int
    tensor_parallel: int

    @property
    def num_ranks(self) -> int:
        return self.data_parallel * self.tensor_parallel

    def __str__(self) -> str:
        return f"dp={self.data_parallel} x tp={self.tensor_parallel}"


def folder_name(step: int) -> str:
    """The folder of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def rank_file(rank: int, suffix: str) -> str:
    """File name of one rank, `suffix` without the dot."""
    return f"rank-{rank:05d}.{suffix}"


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint folder's name; None for anything else."""
    match = _NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises CheckpointError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object.")
    return value


def why_incomplete(folder: Path) -> str | None:
    """The reason why `folder` is not a whole checkpoint, None when it is. Looks at names and sizes only."""
    if not (folder / MANIFEST).is_file():
        return f"no {MANIFEST}: it was never finished"
    try:
        manifest = read_json(folder / MANIFEST)
    except CheckpointError as error:
        return str(error)
    if manifest.get("schema") != SCHEMA:
        return f"its schema is {manifest.get('schema')!r}, this version reads {SCHEMA}"
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
    return None


def newest_whole(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint below `checkpoints`, and why newer ones were passed over."""
    if not checkpoints.is_dir():
        return None, []
    passed_over: list[str] = []
    for folder in sorted((path for path in checkpoints.iterdir() if step_of(path) is not None), reverse=True):
        reason = why_incomplete(folder)
        if reason is None:
            return folder, passed_over
        passed_over.append(f"{folder}: {reason}")
    return None, passed_over
