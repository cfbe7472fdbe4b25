"""Prepare a split once: rows -> a folder named by its fingerprint, complete or not there at all."""

import errno
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from megatune.data.build import Settings, build_arrays, check_vocabulary
from megatune.data.fingerprint import fingerprint
from megatune.data.prepared import SCHEMA, PreparedSet, write_manifest
from megatune.data.read import Source, check_paths, read_rows
from megatune.data.space import full_disk_named
from megatune.errors import DataError
from megatune.files import sync_folder
from megatune.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SCRATCH_SUFFIX = ".tmp"
_SPACE_FIX = (
    "It takes 5 bytes a token, and as much as the source again for parquet and hub data. Free some, or "
    "choose another train.output_dir"
)
_ABANDONED_AFTER_S = 24 * 3600  # what nobody wrote to for a day was left by a killed process


def prepare(
    source: Source,
    *,
    split_name: str,
    task: str,
    tokenizer: "PreTrainedTokenizerBase",
    tokenizer_name: str,
    max_seq_length: int,
    packing: bool,
    completion_only: bool,
    seed: int,
    folder: Path,
    vocab_size: int | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> PreparedSet:
    """The prepared set of `source` below `folder`; made now, or at once when it is there already.

    split_name: `train` or `validation`, for messages and as the default split. vocab_size: rows of
    the model's embedding, None skips that check. on_rows: told how many rows have been read.
    Several processes may prepare the same folder: each works in a scratch folder of its own, the
    first to finish renames it into place and the others take that. Raises DataError for whatever is
    wrong with the data, and then leaves nothing behind.
    """
    settings = Settings(
        task=task,
        max_seq_length=max_seq_length,
        packing=packing,
        completion_only=completion_only,
        seed=seed if packing else 0,
    )
    _check_columns(source, task, split_name)
    check_paths(source, split_name=split_name)
    name = fingerprint(source, tokenizer, {"schema": SCHEMA, **asdict(settings)}, split_name=split_name)
    final = folder / name
    if not final.exists():
        about = {"split": split_name, "paths": source.paths, "tokenizer": tokenizer_name, **asdict(settings)}
        with _scratch(final) as scratch:
            made = scratch / "set"
            made.mkdir()
            counts, report = build_arrays(
                read_rows(source, split_name=split_name, cache_folder=scratch / "cache"),
                made,
                tokenizer,
                settings,
                columns=source.columns,
                split_name=split_name,
                vocab_size=vocab_size,
                on_rows=on_rows,
            )
            write_manifest(made, counts={"fingerprint": name, **counts}, report=report, about=about)
            _publish(made, final)
    prepared = PreparedSet.open(final)
    check_vocabulary(prepared.max_token_id, vocab_size, f"data.{split_name}")
    return prepared


def _check_columns(source: Source, task: str, split_name: str) -> None:
    """Raises DataError for a mapped name that the task does not read."""
    if task not in TASKS:
        raise DataError(f"there is no task {task!r}; tasks are {', '.join(TASKS)}")
    readable = {name for form in TASKS[task].forms for name in form}
    unknown = sorted(set(source.columns) - readable)
    if unknown:
        raise DataError(
            f"data.{split_name}.columns maps {', '.join(unknown)}, which task {task} does not read; it reads "
            f"{', '.join(sorted(readable))} (written as our name: your column)"
        )


@contextmanager
def _scratch(final: Path) -> Iterator[Path]:
    """A folder beside `final` to work in, gone afterwards whatever happens but a kill."""
    folder = final.parent
    with full_disk_named("prepare data", folder, fix=_SPACE_FIX):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        scratch = Path(tempfile.mkdtemp(prefix=f"{final.name}.", suffix=_SCRATCH_SUFFIX, dir=folder))
        try:
            yield scratch
        finally:
            _remove(scratch)


def _remove_abandoned(folder: Path) -> None:
    for scratch in folder.glob(f"*{_SCRATCH_SUFFIX}"):
        if time.time() - max(map(_written, [scratch, *scratch.rglob("*")])) > _ABANDONED_AFTER_S:
            _remove(scratch)


def _written(path: Path) -> float:
    """When `path` was last written; now when it has just gone, for somebody is at work on it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _remove(scratch: Path) -> None:
    # Errors are left out: a network file system may still hold a file open, and a scratch folder
    # that stays takes part in nothing and is removed as abandoned the next day.
    shutil.rmtree(scratch, ignore_errors=True)


def _publish(made: Path, final: Path) -> None:
    """Rename `made` into place, unless another process was faster: equal names hold equal data."""
    sync_folder(made)
    try:
        made.rename(final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    sync_folder(final.parent)
