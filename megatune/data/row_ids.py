"""The ids that rows have of their own, kept with their places: an id that comes twice is named where it stands."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatune.data.arrays import ArrayWriter
from megatune.data.duplicates import first_duplicate, num_duplicates
from megatune.data.pool import Pool, Side
from megatune.data.rows import place_name

IDS = "row_ids"
ARRAYS = {IDS: "uint64", "row_files": "int32", "row_numbers": "int64", "row_lines": "int64"}
"""One value for each row of the user's data, in sets with an id in some row: a hash of the id (0 for none), the file
by its number, and the row and line in it (0 for no lines)."""


def write_ids(pool: Pool, side: Side, folder: Path) -> bool:
    """Write the arrays of the rows of a side; whether some row has an id, for else nothing is left behind."""
    has_ids = False
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(ArrayWriter(folder / f"{name}.npy", kind))
            for name, kind in ARRAYS.items()
        }
        for block in pool.blocks(with_tokens=False):
            records = block.records
            rows = records[side.has(records["hash"]) & (records["piece"] == 0)]
            has_ids = has_ids or bool(rows["id"].any())
            writers[IDS].append(rows["id"])
            writers["row_files"].append(np.full(len(rows), block.file, dtype=np.int32))
            writers["row_numbers"].append(rows["row"].astype(np.int64) + block.rows_before)
            lines = rows["line"].astype(np.int64)
            writers["row_lines"].append(np.where(lines > 0, lines + block.lines_before, 0))
    if not has_ids:
        for name in ARRAYS:
            (folder / f"{name}.npy").unlink()
    return has_ids


def duplicate_ids(folder: Path, files: Sequence[str]) -> tuple[int, tuple[str, str] | None]:
    """Rows whose id a row before them has, and the places of the first pair. files: what to call them."""
    found = first_duplicate(folder / f"{IDS}.npy")
    if found is None:
        return 0, None
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    later, earlier = (row_place(arrays, files, number) for number in found)
    return num_duplicates(folder / f"{IDS}.npy"), (later, earlier)


def row_place(arrays: Mapping[str, npt.NDArray[Any]], files: Sequence[str], number: int) -> str:
    """Where the row of that number stands."""
    file, row, line = (int(arrays[name][number]) for name in ("row_files", "row_numbers", "row_lines"))
    return place_name(files[file], row, line or None)
