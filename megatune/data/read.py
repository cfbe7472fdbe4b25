"""Rows of whatever `data.train` names: files, folders, globs, or a data set of the Hugging Face hub."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from megatune.data.folders import JSON, SUFFIXES, expand, is_data_set, is_glob
from megatune.data.jsonfiles import json_blocks
from megatune.data.opened import COMPRESSED, plain_suffix
from megatune.data.parquet import parquet_blocks
from megatune.data.rows import Block, limited
from megatune.data.textfiles import table_blocks, txt_blocks
from megatune.errors import DataError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


class Source(Protocol):
    """What is read, as the run file gives it."""

    @property
    def paths(self) -> list[str]:
        """Files, folders, globs or hub ids (`owner/name`, or `owner/name@revision`)."""

    @property
    def split(self) -> str | None:
        """The split of a folder or hub id; None takes the one that the section is named after."""

    @property
    def columns(self) -> dict[str, str]:
        """megatune's column names -> those of the data."""

    @property
    def max_samples(self) -> int | None:
        """Only so many rows from the beginning are read; None reads all."""


@dataclass(frozen=True, kw_only=True)
class ReadableFile:
    """One file of rows."""

    path: Path
    label: str = ""
    """What to call it in messages, where that is not its path."""

    def blocks(self, *, in_order: bool) -> Iterator[Block]:
        """Its rows, in blocks. in_order: blocks that know how many rows they hold."""
        suffix = plain_suffix(self.path)
        if suffix in JSON:
            yield from json_blocks(self.path, in_order=in_order)
        elif suffix in (".csv", ".tsv"):
            yield from table_blocks(self.path, delimiter="," if suffix == ".csv" else "\t")
        elif suffix == ".txt":
            yield from txt_blocks(self.path)
        else:
            yield from parquet_blocks(self.path, label=self.label)


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of one source, in the order in which they are read."""

    files: tuple[ReadableFile, ...]
    columns: dict[str, str]
    max_samples: int | None

    @property
    def labels(self) -> list[str]:
        """What to call each file in messages."""
        return [file.label or str(file.path) for file in self.files]

    @property
    def num_bytes(self) -> int:
        """On the disk."""
        return sum(file.path.stat().st_size for file in self.files)

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """The rows, in blocks, each with the number of its file; the same ones whoever asks."""
        left = self.max_samples
        for number, file in enumerate(self.files):
            for block in limited(file.blocks(in_order=left is not None), left):
                yield number, block
                if left is not None:
                    left -= block.num_rows or 0
            if left == 0:
                return


class FileBlock(NamedTuple):
    """A block, and which source and file it is of."""

    source: int
    file: int
    """Counted over all sources."""
    block: Block


def all_blocks(sources: Sequence[Files]) -> Iterator[FileBlock]:
    """The blocks of all sources, one source after another: the same ones, in the same order, in every process."""
    first_file = 0
    for number, source in enumerate(sources):
        for file, block in source.blocks():
            yield FileBlock(number, first_file + file, block)
        first_file += len(source.files)


def find_files(source: Source, *, split_name: str, scratch: Path) -> Files:
    """The files of `source`. Data sets of the hub, and folders that `datasets` wrote, become a file in `scratch`.

    split_name: `train` or `validation`, the section of the run file. Raises DataError when a path is
    missing, or names what cannot be read.
    """
    check_paths(source, split_name=split_name)
    found: list[ReadableFile] = []
    split = source.split or split_name
    for number, path in enumerate(source.paths):
        if is_local(path) and not is_data_set(Path(path)):
            found += [
                ReadableFile(path=file) for file in expand(path, split, is_asked=source.split is not None)
            ]
        else:
            from megatune.data.dataset_rows import write_parquet  # `datasets` takes seconds to import

            target = scratch / f"data-set-{number}.parquet"
            write_parquet(path, split, target, cache_folder=scratch / "cache")
            found.append(ReadableFile(path=target, label=f"{path}[{split}]"))
    return Files(files=tuple(found), columns=dict(source.columns), max_samples=source.max_samples)


def check_sources(sources: Sequence[Source], *, split_name: str) -> None:
    """Raises one DataError with all that is wrong with the paths of `sources`."""
    problems = []
    for source in sources:
        try:
            check_paths(source, split_name=split_name)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))


def check_paths(source: Source, *, split_name: str) -> None:
    """Raises one DataError with all that is wrong with the paths of `source`."""
    problems = [problem for path in source.paths if (problem := _problem(path, source.split, split_name))]
    if not source.paths:
        problems = ["no path is given"]
    if problems:
        raise DataError("\n".join(f"data.{split_name}: {problem}" for problem in problems))


def files_of(path: str, split: str | None, split_name: str) -> list[Path]:
    """The files that a path stands for, those that `datasets` wrote included. Raises DataError where there are none."""
    if not is_local(path):
        raise DataError(f"data.{split_name}: {path} is no file, folder or glob here")
    if is_data_set(Path(path)):
        return sorted(inner for inner in Path(path).rglob("*") if inner.is_file())
    return expand(path, split or split_name, is_asked=split is not None)


def is_local(path: str) -> bool:
    """Whether it is a file, a folder or a glob, and not a hub id."""
    return Path(path).exists() or is_glob(path)


def _problem(path: str, split: str | None, split_name: str) -> str | None:
    file = Path(path)
    if file.is_file():
        return _file_problem(file, split)
    if file.is_dir() and is_data_set(file):
        return None
    if file.is_dir() or is_glob(path):
        try:
            found = expand(path, split or split_name, is_asked=split is not None)
        except DataError as error:
            return str(error)
        problems = [problem for inner in found if (problem := _file_problem(inner, None))]
        return problems[0] if problems else None
    if _may_be_hub_id(file, path):
        return None
    return f"{path} does not exist{_near_names(file)}"


def _file_problem(file: Path, split: str | None) -> str | None:
    suffix = plain_suffix(file)
    if suffix not in SUFFIXES or (suffix == ".parquet" and file.suffix in COMPRESSED):
        return (
            f"{file} ends in {''.join(file.suffixes[-2:]) or 'nothing'!r}; readable are {', '.join(SUFFIXES)}, and "
            "all but parquet with .gz or .zst behind"
        )
    if split is not None:
        return f"{file} is one file and has no split {split!r}; a split is for folders and hub ids"
    return None


def _may_be_hub_id(file: Path, path: str) -> bool:
    """A name that no local file is near: `data/train` beside a folder `data` is a typing error."""
    beside_local = len(file.parts) > 1 and file.parent.exists()
    return bool(_HUB_ID.fullmatch(path)) and plain_suffix(file) not in SUFFIXES and not beside_local


def _near_names(file: Path) -> str:
    folder = file.parent
    if not folder.is_dir():
        return f": there is no folder {folder} (looked from {Path.cwd()})"
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(file.name, names, n=3, cutoff=0.5)
    readable = [name for name in names if plain_suffix(Path(name)) in SUFFIXES]
    shown = near or readable[:5]
    if not shown:
        return f"; {folder.resolve()} holds no data files ({', '.join(SUFFIXES)})"
    return f"; in {folder.resolve()} there is {', '.join(shown)}"
