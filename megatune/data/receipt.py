"""What `prepare` was asked last and what it found, so that asking the same again loads neither tokenizer nor torch.

A prepared set is named by what it is made of, which takes the tokenizer to work out. When the run file says the
same as then, and every file that was looked at is the same by size, inode and times, the name is the same too.
"""

import json
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megatune import __version__
from megatune.config import Run
from megatune.data.hash_memo import SETTLED_AFTER_NS, marks_of
from megatune.data.prepared import PreparedSet
from megatune.data.read import files_of
from megatune.errors import DataError
from megatune.files import write_text_atomic
from megatune.launch.run_folder import RunFolder

_ASKED: Any = {"model": True, "data": True, "tokenizer": True, "evaluate": True, "train": {"seed"}}
_PACKAGES = ("transformers", "tokenizers")
_SPLITS = ("train", "validation", "test")
_CHANGED_AT = 3
"""The place of the time of change among the marks of a file."""

Seen = Mapping[str, Any]


def look(run: Run) -> Seen | None:
    """What decides, without reading a file, whether `run` was prepared. None where that cannot be told so.

    That is the case for models and data of the hub, and for files that were written to just now.
    """
    folders = _model_folders(run)
    if folders is None:
        return None
    try:
        files = {str(path.absolute()): marks_of(path) for path in [*_in_folders(folders), *_of_data(run)]}
    except (OSError, DataError):
        return None  # told in full by what prepares
    newest = max((int(marks[_CHANGED_AT]) for marks in files.values()), default=0)
    if time.time_ns() - newest < SETTLED_AFTER_NS:
        return None
    return {
        "asked": run.model_dump(mode="json", include=_ASKED),
        "versions": [__version__, *map(version, _PACKAGES)],
        "files": files,
    }


def kept_sets(run: Run, seen: Seen | None) -> dict[str, PreparedSet] | None:
    """The prepared sets of `run`, where nothing has changed since `keep`; else None."""
    folder = RunFolder(run.train.output_dir)
    try:
        kept = json.loads(folder.receipt.read_text(encoding="utf-8"))
        if seen is None or kept["seen"] != seen:
            return None
        return {split: PreparedSet.open(folder.prepared / name) for split, name in kept["sets"].items()}
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None


def keep(run: Run, seen: Seen | None, sets: Mapping[str, PreparedSet]) -> None:
    """Remember that `sets` are those of `run` as it was `seen` before they were prepared."""
    if seen is None or look(run) != seen:
        return
    names = {split: prepared.folder.name for split, prepared in sets.items()}
    write_text_atomic(
        RunFolder(run.train.output_dir).receipt, json.dumps({"seen": seen, "sets": names}) + "\n"
    )


def _model_folders(run: Run) -> list[Path] | None:
    """Folders that model and tokenizer come from; None where one is no folder here."""
    named = [run.model.model_name_or_path, *([run.model.tokenizer] if run.model.tokenizer else [])]
    if not all(Path(name).exists() for name in named):
        return None
    own = RunFolder(run.train.output_dir).model
    return [*map(Path, named), *([own] if run.tokenizer is not None else [])]


def _in_folders(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        inner = [folder] if folder.is_file() else sorted(folder.iterdir())
        yield from (path for path in inner if path.is_file())


def _of_data(run: Run) -> Iterator[Path]:
    """Raises DataError for data that is not on this machine's disk."""
    for split in _SPLITS:
        section = getattr(run.data, split)
        for source in section.parts if section is not None else ():
            for path in source.paths:
                yield from files_of(path, source.split, split)
