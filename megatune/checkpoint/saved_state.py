"""This rank's part of a checkpoint, read by position out of the rank files of whatever layout saved it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from megatune.checkpoint.layout import Layout, rank_file, read_json
from megatune.checkpoint.reshard import Copy, Placement, copies
from megatune.checkpoint.tensors import SliceFile, bytes_of
from megatune.checkpoint.weights_index import WeightEntry
from megatune.errors import CheckpointError, ResumeError

_ELEMENT_BYTES = 4


@dataclass
class SavedPieces:
    """Implements `engine.state.SavedState`. Files must have been verified before anything is read.

    It holds headers of files and never a tensor: pieces are read straight into the engine's memory.
    """

    folder: Path
    saved_layout: Layout
    saved_weights: Mapping[str, WeightEntry]
    layout: Layout
    weights: Mapping[str, WeightEntry]
    """Of the model that is to go on."""
    rank: int
    """In `layout`."""
    _files: dict[int, SliceFile] = field(default_factory=dict)
    _last_copies: tuple[str, list[Copy]] = ("", [])

    def __post_init__(self) -> None:
        """Raises ResumeError when the model's parameters are others than those saved."""
        shapes = [
            {name: entry.shape for name, entry in held.items()} for held in (self.saved_weights, self.weights)
        ]
        odd = sorted(
            name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)
        )
        if odd:
            first = odd[0]
            raise ResumeError(
                f"{self.folder} holds another model: {len(odd)} parameters differ, e.g. {first}, which is "
                f"{shapes[0].get(first, 'missing')} there and {shapes[1].get(first, 'missing')} in this model."
            )

    @cached_property
    def kinds(self) -> Sequence[str]:
        found = dict.fromkeys(key.partition("/")[0] for key in self._file(0).names)
        return [kind for kind in found if kind != "rng"]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.weights)

    @cached_property
    def scalars(self) -> Mapping[str, Any]:
        """The first rank's: optimizer and loss scale count alike on all."""
        path = self.folder / rank_file(0, "json")
        scalars = read_json(path)
        if not all(isinstance(scalars.get(key), dict) for key in ("optimizer", "loss_scale", "rng")):
            raise CheckpointError(f"{path} does not hold what a rank needs to go on.")
        return scalars

    @property
    def bytes_read(self) -> int:
        """Bytes of tensors that this rank has read so far."""
        return sum(file.bytes_read for file in self._files.values())

    def num_elements(self, name: str) -> int:
        start, stop = self._placement(name).piece_range(self.rank)
        return stop - start

    def read_into(self, kind: str, name: str, piece: torch.Tensor) -> None:
        if piece.numel() != self.num_elements(name) or piece.dtype != torch.float32:
            raise CheckpointError(
                f"{name}: {piece.numel()} elements asked for, {self.num_elements(name)} saved."
            )
        target = bytes_of(piece)
        for rank, group in groupby(self._copies(name), key=lambda copy: copy.rank):
            file = self._file(rank)
            try:
                with file.path.open("rb", buffering=0) as opened:
                    for copy in group:
                        start = copy.target * _ELEMENT_BYTES
                        stop = start + copy.count * _ELEMENT_BYTES
                        file.read_into(opened.fileno(), f"{kind}/{name}", copy.start, target[start:stop])
            except OSError as error:
                raise CheckpointError(f"{file.path} cannot be read: {error.strerror}.") from error

    def _copies(self, name: str) -> list[Copy]:
        """In the order of the old ranks, so that each of their files is opened once. Kept for the next kind."""
        if self._last_copies[0] != name:
            entry = self.saved_weights[name]
            found = copies(entry.placement(self.saved_layout), self._placement(name), self.rank)
            self._last_copies = name, sorted(found, key=lambda copy: copy.rank)
        return self._last_copies[1]

    def _placement(self, name: str) -> Placement:
        return self.weights[name].placement(self.layout)

    def _file(self, rank: int) -> SliceFile:
        if rank not in self._files:
            self._files[rank] = SliceFile(self.folder / rank_file(rank, "safetensors"))
        return self._files[rank]
