"""Tensors of a checkpoint's rank files, read in part by their position. See `stream` for how they are written.

The safetensors library reads whole files or maps them; a rank that needs a stretch of another rank's
file wants neither, and a map of a file that shrinks ends the process (SIGBUS) instead of raising.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatune.checkpoint.layout import parse_json
from megatune.errors import CheckpointError

_TYPES = {"F32": torch.float32, "U8": torch.uint8}
_MAX_HEADER_BYTES = 2**27


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, writable."""
    flat = tensor.detach().view(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
    return flat.numpy().data


@dataclass(frozen=True)
class _Place:
    dtype: str
    num_elements: int
    start: int
    """Byte of the file."""


class SliceFile:
    """One safetensors file, to be read in part. Only its header stays in memory."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError naming the file when its header is none."""
        self.path = path
        self.bytes_read = 0
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > _MAX_HEADER_BYTES:
                    raise CheckpointError(f"{path} has no header of a safetensors file.")
                header = parse_json(file.read(length), path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
        header.pop("__metadata__", None)
        try:
            self._places = {name: _place(entry, 8 + length) for name, entry in header.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} has no header of a safetensors file: {error}.") from error

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def num_elements(self, name: str) -> int:
        """Raises CheckpointError when there is no such tensor."""
        return self._place(name).num_elements

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor, flat."""
        place = self._place(name)
        tensor = torch.empty(place.num_elements, dtype=_TYPES[place.dtype])
        with self.path.open("rb") as file:
            self.read_into(file.fileno(), name, 0, bytes_of(tensor))
        return tensor

    def read_into(self, descriptor: int, name: str, first: int, target: memoryview) -> None:
        """Fill `target` with the elements of `name` from number `first` on, through an open descriptor.

        Raises CheckpointError naming the file when it holds fewer or cannot be read.
        """
        place = self._place(name)
        item_bytes = _TYPES[place.dtype].itemsize
        if first * item_bytes + len(target) > place.num_elements * item_bytes:
            raise CheckpointError(f"{self.path}: {name} has {place.num_elements} elements, too few.")
        position, done = place.start + first * item_bytes, 0
        while done < len(target):
            try:
                count = os.preadv(descriptor, [target[done:]], position + done)
            except OSError as error:
                raise CheckpointError(f"{self.path} cannot be read: {error.strerror}.") from error
            if count == 0:
                raise CheckpointError(f"{self.path} ends in the middle of {name}.")
            done += count
        self.bytes_read += done

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise CheckpointError(f"{self.path} holds no {name}.")
        return self._places[name]


def _place(entry: Mapping[str, Any], data_start: int) -> _Place:
    start, stop = entry["data_offsets"]
    count = math.prod(entry["shape"])
    if entry["dtype"] not in _TYPES or stop - start != count * _TYPES[entry["dtype"]].itemsize or start < 0:
        raise ValueError(
            f"a tensor of type {entry['dtype']!r}, shape {entry['shape']}, bytes {start}..{stop}"
        )
    return _Place(entry["dtype"], count, data_start + start)
