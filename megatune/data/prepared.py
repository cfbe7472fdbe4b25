"""Prepared data on disk: token ids, loss masks and packed rows, memory-mapped by every rank."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from megatune.data import row_ids
from megatune.data.arrays import map_array, sync
from megatune.data.examples import Example
from megatune.data.part import LABELS
from megatune.data.quality import Report, report_from
from megatune.errors import DataError
from megatune.files import hash_file

SCHEMA = 7
"""Raised when the files or what is written into them change; older sets are then prepared anew."""
MANIFEST = "manifest.json"
ARRAYS = {
    "tokens": "int32",
    "is_target": "bool",
    "example_offsets": "int64",
    "row_examples": "int32",
    "row_offsets": "int64",
    "row_hashes": "uint64",
}
"""Example e holds tokens example_offsets[e] : [e + 1]; row r holds the examples
row_examples[row_offsets[r] : [r + 1]]. row_hashes has one value for each row of the user's data that is
in the set: rows that say the same have the same."""

OPTIONAL_ARRAYS = {LABELS: "int32", **row_ids.ARRAYS}
"""Labels stand beside `tokens`, in sets that are made for a classifier head; the others beside `row_hashes`, in sets
of rows with ids."""
TYPES = {**ARRAYS, **OPTIONAL_ARRAYS}


@dataclass(frozen=True, kw_only=True)
class PreparedSet:
    """One prepared split. Opening it maps files and reads none; `row` touches what it returns."""

    folder: Path
    fingerprint: str
    num_rows: int
    """Rows of at most `max_seq_length` tokens: what the sampler counts and a batch is made of."""
    num_examples: int
    num_tokens: int
    num_targets: int
    """Tokens that a loss is taken on."""
    max_token_id: int
    max_seq_length: int
    packed: bool
    pad_id: int
    files: list[str] = field(default_factory=list)
    """What to call the files that its rows are from; empty without ids."""
    report: Report
    arrays: dict[str, npt.NDArray[Any]]

    @classmethod
    def open(cls, folder: Path) -> "PreparedSet":
        """Map the set in `folder`. Raises DataError when it is none, is damaged or of another version."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            if manifest["schema"] != SCHEMA:
                raise ValueError(f"its schema is {manifest['schema']}, this version reads {SCHEMA}")
            if manifest.pop("xxh3") != _own_hash(manifest):
                raise ValueError(f"{MANIFEST} changed since it was written")
            optional = [
                name for name in OPTIONAL_ARRAYS if _array_file(folder, name).name in manifest["files"]
            ]
            arrays = {name: _checked_array(folder, name, manifest) for name in (*ARRAYS, *optional)}
            report = report_from(manifest["report"])
            return cls(folder=folder, report=report, arrays=arrays, **manifest["set"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unusable(folder, str(error)) from error

    def row(self, number: int) -> list[Example]:
        """The examples of one row, one after another; read-only views into the files."""
        if not 0 <= number < self.num_rows:
            raise IndexError(f"row {number} of {self.num_rows}")
        start, end = self.arrays["row_offsets"][number : number + 2]
        return [self.example(int(example)) for example in self.arrays["row_examples"][start:end]]

    def row_lengths(self, num_rows: int) -> npt.NDArray[np.int64]:
        """Tokens of each of the first `num_rows` rows."""
        if num_rows == 0:
            return np.zeros(0, dtype=np.int64)
        starts = self.arrays["row_offsets"][: num_rows + 1]
        examples = self.arrays["row_examples"][starts[0] : starts[-1]]
        offsets = self.arrays["example_offsets"]
        return np.add.reduceat(offsets[examples + 1] - offsets[examples], starts[:-1] - starts[0])

    def lengths_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Tokens of each of `rows`."""
        bounds, offsets = self.arrays["row_offsets"], self.arrays["example_offsets"]
        examples = [self.arrays["row_examples"][bounds[row] : bounds[row + 1]] for row in rows]
        return np.array([(offsets[one + 1] - offsets[one]).sum() for one in examples], dtype=np.int64)

    def num_examples_in(self, num_rows: int | None) -> int:
        """Examples of the first `num_rows` rows, or of all."""
        last = self.num_rows if num_rows is None else min(num_rows, self.num_rows)
        return int(self.arrays["row_offsets"][last])

    def example(self, number: int) -> Example:
        """One document."""
        start, end = self.arrays["example_offsets"][number : number + 2]
        labels = self.arrays[LABELS][start:end] if LABELS in self.arrays else None
        return Example(self.arrays["tokens"][start:end], self.arrays["is_target"][start:end], labels)

    @property
    def row_ids(self) -> Path | None:
        """The file of the hashes of the ids that rows have of their own; None without any."""
        return _array_file(self.folder, row_ids.IDS) if row_ids.IDS in self.arrays else None

    def place_of(self, number: int) -> str:
        """Where a row of the user's data stands, by its number in `row_ids`."""
        return row_ids.row_place(self.arrays, self.files, number)

    @property
    def row_hashes(self) -> Path:
        """The file of the hashes of what the rows say."""
        return _array_file(self.folder, "row_hashes")

    def verify(self) -> None:
        """Read all files and compare their hashes; DataError names those that changed or cannot be read."""
        try:
            files = json.loads((self.folder / MANIFEST).read_text())["files"]
            changed = [n for n, entry in files.items() if hash_file(self.folder / n) != entry["xxh3"]]
        except (OSError, ValueError) as error:
            raise _unusable(self.folder, str(error)) from error
        if changed:
            raise _unusable(self.folder, f"{', '.join(changed)} changed since it was written")


def write_manifest(folder: Path, *, counts: dict[str, Any], report: Report, about: dict[str, Any]) -> None:
    """Describe the arrays that stand in `folder` and see the description to the disk.

    counts: the fields of PreparedSet that are neither folder, report nor arrays. about: what the
    set was made from: see `fingerprint.changes`.
    """
    paths = [path for name in TYPES if (path := _array_file(folder, name)).exists() or name in ARRAYS]
    files = {path.name: {"bytes": path.stat().st_size, "xxh3": hash_file(path)} for path in paths}
    manifest = {"schema": SCHEMA, "set": counts, "report": asdict(report), "about": about, "files": files}
    manifest["xxh3"] = _own_hash(manifest)
    with (folder / MANIFEST).open("w") as file:
        file.write(json.dumps(manifest, indent=1) + "\n")
        file.flush()
        sync(file.fileno())


def _own_hash(manifest: dict[str, Any]) -> str:
    """Of all that a manifest says but this hash itself."""
    return xxhash.xxh3_128_hexdigest(json.dumps(manifest, sort_keys=True).encode())


def _array_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _checked_array(folder: Path, name: str, manifest: dict[str, Any]) -> npt.NDArray[Any]:
    """An array whose size on the disk and type are those of the manifest."""
    path = _array_file(folder, name)
    expected, found = manifest["files"][path.name]["bytes"], path.stat().st_size
    if found != expected:
        raise ValueError(f"{path.name} has {found} bytes, its manifest says {expected}")
    array = map_array(path)
    if array.dtype != TYPES[name] or array.ndim != 1:
        raise ValueError(
            f"{path.name} holds {array.dtype} in {array.ndim} dimensions, not {TYPES[name]} in 1"
        )
    return array


def _unusable(folder: Path, why: str) -> DataError:
    return DataError(
        f"{folder} is not a whole prepared data set: {why}. Delete that folder and prepare again"
    )
