"""Whole tensors out of the rank files of a checkpoint, on one process without a process group."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from megatune.checkpoint.layout import WEIGHTS, Layout, read_json
from megatune.checkpoint.manifest import read_manifest, why_incomplete
from megatune.checkpoint.saved_state import SavedPieces
from megatune.checkpoint.verify import damage
from megatune.checkpoint.weights_index import WeightEntry
from megatune.errors import CheckpointError


class WholeTensors:
    """The whole fp32 tensors of a checkpoint, one at a time, named and turned as Hugging Face stores them."""

    def __init__(self, checkpoint: Path, *, verify: bool = True) -> None:
        """Raises CheckpointError for a folder that is no whole checkpoint or, with `verify`, a damaged one."""
        reason = why_incomplete(checkpoint)
        if reason:
            raise CheckpointError(f"{checkpoint} is not a whole checkpoint: {reason}.")
        self.manifest = read_manifest(checkpoint)
        problems = damage(checkpoint, self.manifest, self.manifest.files) if verify else []
        if problems:
            raise CheckpointError(" ".join(problems))
        stored = read_json(checkpoint / WEIGHTS)
        self._entries = {name: WeightEntry.from_json(entry) for name, entry in stored.items()}
        self._pieces = SavedPieces(
            folder=checkpoint,
            saved_layout=self.manifest.layout,
            saved_weights=self._entries,
            layout=Layout(data_parallel=1, tensor_parallel=1),
            weights={name: replace(entry, cut=None, divisions=None) for name, entry in self._entries.items()},
            rank=0,
        )
        self.kinds = self._pieces.kinds

    @property
    def scalars(self) -> Mapping[str, Any]:
        """What the optimizer and the loss scale count, as in a rank's JSON file."""
        return self._pieces.scalars

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: entry.shape[::-1] if entry.transposed else entry.shape
            for name, entry in self._entries.items()
        }

    def read(self, kind: str, name: str) -> torch.Tensor:
        """`kind` of the parameter `name`: its weight or a moment of the optimizer."""
        entry = self._entries[name]
        flat = torch.empty(math.prod(entry.shape), dtype=torch.float32)
        self._pieces.read_into(kind, name, flat)
        whole = flat.view(entry.shape)
        return whole.t().contiguous() if entry.transposed else whole
