"""Write a safetensors file tensor by tensor: the names and shapes are known first, the values come one at a time.

The one writer of such files here. The hash is of what was handed to the system, not of what was read back.

The format (https://github.com/huggingface/safetensors#format): eight bytes with the length of the header, a
JSON header with every tensor's dtype, shape and place, the bytes of all tensors without gaps.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import xxhash

from megatune.checkpoint.manifest import FileEntry
from megatune.checkpoint.tensors import bytes_of

_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}
"""The format's names of the dtypes written here."""
_BLOCK_ELEMENTS = 2**20


@dataclass(frozen=True)
class TensorPlan:
    """What a tensor of the file will be."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class TensorFile:
    """A safetensors file that is being written; tensors are added in the order of the plan.

    Holds no tensor. Closing it forces it to the disk. Raises OSError when the disk does not take it.
    """

    def __init__(
        self,
        path: Path,
        plan: Mapping[str, TensorPlan],
        *,
        on_written: Callable[[int], None] = lambda _: None,
    ) -> None:
        """on_written: told the bytes of each block once the system has taken it."""
        header = _header(plan)
        self._on_written = on_written
        self._plan, self._pending = plan, list(plan)[::-1]
        self._digest, self._size = xxhash.xxh3_128(), 0
        self._file = path.open("wb", buffering=0)
        self._write(memoryview(struct.pack("<Q", len(header)) + header))

    @property
    def entry(self) -> FileEntry:
        """Size and hash of the bytes written so far."""
        return FileEntry(size=self._size, xxh3_128=self._digest.hexdigest())

    def add(self, name: str, parts: Iterable[torch.Tensor]) -> None:
        """Append the tensor that comes next in the plan, given as parts that follow each other in it.

        Each part is brought to the host in the planned dtype, block by block, before the next one is asked for.
        """
        assert self._pending and self._pending.pop() == name, "tensors come in the order of the plan"
        plan = self._plan[name]
        expected = self._size + plan.num_bytes
        for part in parts:
            for block in part.detach().contiguous().view(-1).split(_BLOCK_ELEMENTS):
                self._write(bytes_of(block.to("cpu", plan.dtype)))
        assert self._size == expected, f"{name}: the plan holds its shape"

    def _write(self, data: memoryview) -> None:
        self._digest.update(data)
        self._size += len(data)
        rest = data
        while rest:
            rest = rest[self._file.write(rest) :]
        self._on_written(len(data))

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                assert not self._pending, "every tensor of the plan is written"
                os.fsync(self._file.fileno())


def write_tensor_file(
    path: Path, tensors: Mapping[str, torch.Tensor], *, on_written: Callable[[int], None] = lambda _: None
) -> FileEntry:
    """Write fp32 and byte tensors of any device, force them to the disk, and return size and hash.

    Bytes come last in `tensors`: the format wants wider types aligned. A few megabytes at a time are
    copied to the host. Raises OSError when the disk does not take it.
    """
    plan = {name: TensorPlan(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    with TensorFile(path, plan, on_written=on_written) as file:
        for name, tensor in tensors.items():
            file.add(name, [tensor])
    return file.entry


def _header(plan: Mapping[str, TensorPlan]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in plan.items():
        stop = offset + tensor.num_bytes
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    header = json.dumps(entries, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8)  # the tensors begin at a multiple of eight bytes


def split_files(num_bytes: Mapping[str, int], limit_bytes: int) -> list[list[str]]:
    """Names in files of at most `limit_bytes`, in their order; a larger tensor has a file of its own.

    >>> split_files({"a": 4, "b": 4, "c": 9, "d": 1}, 8)
    [['a', 'b'], ['c'], ['d']]
    """
    files: list[list[str]] = []
    held = 0
    for name, size in num_bytes.items():
        if not files or held + size > limit_bytes:
            files.append([])
            held = 0
        files[-1].append(name)
        held += size
    return files
