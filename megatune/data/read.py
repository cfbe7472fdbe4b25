"""Rows of whatever `data.train` names: files, folders, or a data set of the Hugging Face hub."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from megatune.data.textfiles import READERS, Row
from megatune.errors import DataError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
SUFFIXES = (*READERS, ".parquet")


class Source(Protocol):
    """What is read, as the run file gives it."""

    @property
    def paths(self) -> list[str]:
        """Files, folders or hub ids (`owner/name`, or `owner/name@revision`)."""

    @property
    def split(self) -> str | None:
        """The split of a folder or hub id; None takes the one that the section is named after."""

    @property
    def columns(self) -> dict[str, str]:
        """megatune's column names -> those of the data."""


def read_rows(source: Source, *, split_name: str, cache_folder: Path) -> Iterator[Row]:
    """All rows of `source`, path by path, in the order of the files.

    split_name: `train` or `validation`, the section of the run file. cache_folder: where `datasets`
    may put what it unpacks or downloads; it must be private to this process, so that no lock is
    ever taken on a shared file system. Raises DataError before the first row when a path is missing.
    """
    check_paths(source, split_name=split_name)
    for path in source.paths:
        file = Path(path)
        if not file.is_file():
            yield from _dataset_rows(path, source.split or split_name, cache_folder)
        elif file.suffix == ".parquet":
            yield from _parquet_rows(file, cache_folder)
        else:
            yield from READERS[file.suffix](file)


def check_paths(source: Source, *, split_name: str) -> None:
    """Raises one DataError with all that is wrong with the paths of `source`."""
    problems = [problem for path in source.paths if (problem := _problem(path, source.split))]
    if not source.paths:
        problems = ["no path is given"]
    if problems:
        raise DataError("\n".join(f"data.{split_name}: {problem}" for problem in problems))


def _problem(path: str, split: str | None) -> str | None:
    file = Path(path)
    if file.is_file():
        return _file_problem(file, split)
    if file.is_dir() or _may_be_hub_id(file, path):
        return None
    return f"{path} does not exist{_near_names(file)}"


def _file_problem(file: Path, split: str | None) -> str | None:
    if file.suffix not in SUFFIXES:
        return f"{file} ends in {file.suffix or 'nothing'!r}; readable are {', '.join(SUFFIXES)}"
    if split is not None:
        return f"{file} is one file and has no split {split!r}; a split is for folders and hub ids"
    return None


def _may_be_hub_id(file: Path, path: str) -> bool:
    """A name that no local file is near: `data/train` beside a folder `data` is a typing error."""
    beside_local = len(file.parts) > 1 and file.parent.exists()
    return bool(_HUB_ID.fullmatch(path)) and file.suffix not in SUFFIXES and not beside_local


def _near_names(file: Path) -> str:
    folder = file.parent
    if not folder.is_dir():
        return f": there is no folder {folder} (looked from {Path.cwd()})"
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(file.name, names, n=3, cutoff=0.5)
    readable = [name for name in names if Path(name).suffix in SUFFIXES]
    shown = near or readable[:5]
    if not shown:
        return f"; {folder.resolve()} holds no data files ({', '.join(SUFFIXES)})"
    return f"; in {folder.resolve()} there is {', '.join(shown)}"


def _dataset_rows(path: str, split: str, cache_folder: Path) -> Iterator[Row]:
    from megatune.data.dataset_rows import dataset_rows  # `datasets` takes seconds to import

    return dataset_rows(path, split, cache_folder)


def _parquet_rows(file: Path, cache_folder: Path) -> Iterator[Row]:
    from megatune.data.dataset_rows import parquet_rows

    return parquet_rows(file, cache_folder)
