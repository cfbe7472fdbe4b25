"""Tensors of a checkpoint's rank files: written in one pass with their hash, read in part by their position.

The safetensors library reads whole files or maps them; a rank that needs a stretch of another rank's
file wants neither, and a map of a file that shrinks ends the process (SIGBUS) instead of raising.
The format: 8 bytes with the length of a JSON header, the header, the tensors one after another.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from megatune.checkpoint.layout import parse_json
from megatune.checkpoint.manifest import FileEntry
from megatune.errors import CheckpointError

_TYPES = {"F32": torch.float32, "U8": torch.uint8}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_MAX_HEADER_BYTES = 2**27
_BLOCK_BYTES = 2**22


def write_tensor_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileEntry:
    """Write fp32 and byte tensors of any device, force them to the disk, and return size and hash.

    Bytes come last in `tensors`: the format wants wider types aligned. The hash is of what was handed
    to the system, not of what was read back. One tensor at a time is copied to the host. Raises OSError
    naming the file.
    """
    digest, size = xxhash.xxh3_128(), 0
    with path.open("wb", buffering=0) as file:
        for block in _blocks(tensors):
            digest.update(block)
            size += len(block)
            while block:
                block = block[file.write(block) :]
        os.fsync(file.fileno())
    return FileEntry(size=size, xxh3_128=digest.hexdigest())


def _blocks(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        place = [offset, offset + tensor.nbytes]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        view = bytes_of(tensor.detach().cpu().contiguous())
        for start in range(0, len(view), _BLOCK_BYTES):
            yield view[start : start + _BLOCK_BYTES]


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
