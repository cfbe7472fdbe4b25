"""The files that a folder or a glob stands for."""

import glob
import re
from pathlib import Path

from megatune.data.opened import plain_suffix
from megatune.errors import DataError
from megatune.launch.run_folder import RunFolder

JSON = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*JSON, ".csv", ".tsv", ".txt", ".parquet")
"""The endings of files of rows."""

_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What file and folder names call a split; the same words that `datasets` looks for."""
_WRITTEN_BY_DATASETS = ("dataset_dict.json", "state.json")


def is_glob(path: str) -> bool:
    """Whether `path` has wildcards and no file is called so."""
    return glob.has_magic(path) and not Path(path).exists()


def is_data_set(folder: Path) -> bool:
    """Whether `datasets` wrote the folder (`save_to_disk`)."""
    return any((folder / name).is_file() for name in _WRITTEN_BY_DATASETS)


def expand(path: str, split: str, *, is_asked: bool) -> list[Path]:
    """The files of a file, a folder or a glob, sorted by name; hidden ones are left out.

    Run folders below a folder are no data: what a run writes must not be the rows of the next. A folder whose
    names tell splits apart gives those of `split`. One whose names do not gives all of its files, but not where
    a split `is_asked` for. Raises DataError when there is none.
    """
    if is_glob(path):
        names = glob.glob(path, recursive=True)  # noqa: PTH207  (Path.glob takes no absolute patterns)
        found = sorted(Path(name) for name in names if Path(name).is_file())
        if not found:
            raise DataError(f"no file is called {path} (looked from {Path.cwd()})")
        return found
    folder = Path(path)
    if folder.is_file():
        return [folder]
    found = [file for file in sorted(folder.rglob("*")) if _is_rows(file.relative_to(folder), file)]
    files = _outside_runs(folder, found)
    if not files:
        raise DataError(f"the folder {folder} holds no data files ({', '.join(SUFFIXES)})")
    return _of_split(folder, files, split, is_asked)


def _is_rows(inner: Path, file: Path) -> bool:
    is_hidden = any(part.startswith((".", "_")) for part in inner.parts)
    return plain_suffix(file) in SUFFIXES and not is_hidden and file.is_file()


def _outside_runs(folder: Path, files: list[Path]) -> list[Path]:
    below = {inner for file in files for inner in file.parents if folder in inner.parents}
    runs = [inner for inner in below if RunFolder(inner).is_made]
    return [file for file in files if not any(run in file.parents for run in runs)]


def _of_split(folder: Path, files: list[Path], split: str, is_asked: bool) -> list[Path]:
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file.relative_to(folder)) or "train", []).append(file)
    if set(by_split) == {"train"} and not is_asked:
        return files
    if split not in by_split:
        raise DataError(
            f"the folder {folder} has no split {split!r}; its file names tell {', '.join(by_split)}"
        )
    return by_split[split]


def _split_of(inner: Path) -> str | None:
    """The split that the words of a path name, the last of them first."""
    words = [word for part in inner.parts for word in re.split(r"[^a-z]+", part.lower())]
    for word in reversed(words):
        for split, names in _SPLIT_WORDS.items():
            if word in names:
                return split
    return None
