"""Arrays on disk: written piece by piece, read piece by piece or memory-mapped."""

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt


class ArrayWriter:
    """Writes a one-dimensional .npy file whose length is known only at the end.

    The header is written first with length 0 and again on leaving: NumPy leaves blanks in it for
    just that. The file is on the disk, not only on its way there, when the block is left.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self.length = 0
        self._dtype = np.dtype(dtype)
        self._file = path.open("wb")
        self._header_bytes = self._write_header()

    def append(self, values: npt.NDArray[Any]) -> None:
        """Add `values` at the end; they are cast to the type of the file."""
        array = values.astype(self._dtype, casting="same_kind", copy=False)
        self._file.write(np.ascontiguousarray(array).data)
        self.length += len(array)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._file.seek(0)
                written = self._write_header()
                assert written == self._header_bytes, "NumPy keeps room for the length in its header"
                sync(self._file.fileno())

    def _write_header(self) -> int:
        described = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": described, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()


class ArrayReader:
    """Reads pieces of a one-dimensional .npy file into memory.

    A mapped file would do, but each page of it that was touched counts as memory of the process
    until the system wants it back, and grows with the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        version = np.lib.format.read_magic(self._file)
        assert version == (1, 0), "as ArrayWriter writes"
        shape, _, self._dtype = np.lib.format.read_array_header_1_0(self._file)
        self.length: int = shape[0]
        self._first_byte = self._file.tell()
        self._at = 0

    def read(self, start: int, count: int) -> npt.NDArray[Any]:
        """The values `start : start + count`."""
        self._file.seek(self._first_byte + start * self._dtype.itemsize)
        self._at = start + count
        return np.fromfile(self._file, dtype=self._dtype, count=count)

    def next(self, count: int) -> npt.NDArray[Any]:
        """The `count` values behind those that were read last."""
        return self.read(self._at, count)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def map_array(path: Path) -> npt.NDArray[Any]:
    """The array of a .npy file, read-only and loaded page by page as it is touched.

    Raises ValueError or OSError when the file is no such array, is empty, or is shorter than its
    header says; never unpickles anything.
    """
    mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def sync(descriptor: int) -> None:
    """Wait until the file or folder behind an open descriptor is on the disk."""
    os.fsync(descriptor)
