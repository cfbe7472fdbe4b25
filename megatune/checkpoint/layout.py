"""What a checkpoint folder holds, by name.

`checkpoints/step-00000100/`:
  `manifest.json`            written last; what is in the folder, with sizes and hashes (see `manifest`)
  `training.json`            step, data position, counters, the run's settings: what all ranks share
  `weights.json`             every parameter's whole shape, how it is cut, what export transposes
  `model/`                   config.json and the tokenizer, so that export needs nothing else
  `rank-00000.safetensors`   `kind/parameter` -> flat fp32 piece, `rng/...` -> generator states
  `rank-00000.json`          optimizer counters, loss scale, Python's and numpy's generators
No file is a pickle: reading a checkpoint runs no code from it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatune.errors import CheckpointError

TRAINING = "training.json"
WEIGHTS = "weights.json"
MODEL_FOLDER = "model"
BUFFERS = "buffers.safetensors"
"""In the folder of the model: what is stored with its weights, and is none. An export has them among its weights."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a model is spread over ranks; rank = data_rank * tensor_parallel + tensor_rank."""

    data_parallel: int
    tensor_parallel: int
    accumulation: int = 1
    """Micro-batches in a step; it moves no tensor."""

    @property
    def num_ranks(self) -> int:
        return self.data_parallel * self.tensor_parallel

    def has_ranks_of(self, other: "Layout") -> bool:
        """Whether every rank holds the same pieces under both."""
        return (self.data_parallel, self.tensor_parallel) == (other.data_parallel, other.tensor_parallel)

    def __str__(self) -> str:
        return f"dp={self.data_parallel} x tp={self.tensor_parallel}"


def rank_file(rank: int, suffix: str) -> str:
    """File name of one rank, `suffix` without the dot."""
    return f"rank-{rank:05d}.{suffix}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises CheckpointError naming the file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return parse_json(content, path)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object that `content`, read from `path`, holds. Raises CheckpointError naming the file."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:  # RecursionError: a hostile file, nested without end
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object.")
    return value
