"""Prepare a split once: rows -> a folder named by its fingerprint, complete or not there at all."""

import errno
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from megatune.data.build import Counts, Settings, Share, arrange, check_vocabulary, write_tokens
from megatune.data.fingerprint import fingerprint
from megatune.data.prepared import SCHEMA, PreparedSet, write_manifest
from megatune.data.read import Source, check_paths, read_rows
from megatune.data.shared_prepare import merge, tokenize_together
from megatune.data.space import full_disk_named
from megatune.data.team import ALONE, Team
from megatune.data.textfiles import Row
from megatune.data.tokenize import padding_id
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
    team: Team = ALONE,
) -> PreparedSet:
    """The prepared set of `source` below `folder`; made now, or at once when it is there already.

    split_name: `train` or `validation`, for messages and as the default split. vocab_size: rows of
    the model's embedding, None skips that check. on_rows: told how many rows have been read. team:
    processes that make the set together, each with the same arguments; collective then.
    Several processes may prepare the same folder: each works in a scratch folder of its own, the
    first to finish renames it into place and the others take that. Raises DataError for whatever is
    wrong with the data, and then leaves nothing behind.
    """
    split = _Split(
        source=source,
        name=split_name,
        tokenizer=tokenizer,
        tokenizer_name=tokenizer_name,
        settings=Settings(
            task=task,
            max_seq_length=max_seq_length,
            packing=packing,
            completion_only=completion_only,
            seed=seed if packing else 0,
        ),
        vocab_size=vocab_size,
        on_rows=on_rows,
    )
    final = folder / team.first(split.set_name)
    if not team.first(final.exists):
        with _scratch(final, team) as scratch:
            _make(split, final, scratch, team)
    return team.each(lambda: split.open(final))


@dataclass(frozen=True, kw_only=True)
class _Split:
    """One split of the data, and how to prepare it."""

    source: Source
    name: str
    tokenizer: "PreTrainedTokenizerBase"
    tokenizer_name: str
    settings: Settings
    vocab_size: int | None
    on_rows: Callable[[int], None]

    def set_name(self) -> str:
        """The fingerprint of the set. Raises DataError when the split cannot be read."""
        _check_columns(self.source, self.settings.task, self.name)
        check_paths(self.source, split_name=self.name)
        settings = {"schema": SCHEMA, **asdict(self.settings)}
        return fingerprint(self.source, self.tokenizer, settings, split_name=self.name)

    def write(self, rows: Iterable[Row], folder: Path, share: Share) -> Counts:
        """Tokenise `share` of `rows` into `folder`."""
        return write_tokens(
            rows,
            folder,
            self.tokenizer,
            self.settings,
            columns=self.source.columns,
            split_name=self.name,
            vocab_size=self.vocab_size,
            on_rows=self.on_rows,
            share=share,
        )

    def publish(self, made: Path, counts: Counts, final: Path) -> None:
        """Complete the set whose tokens stand in `made`, and give it its name."""
        described, report = arrange(
            made, counts, self.settings, split_name=self.name, pad_id=padding_id(self.tokenizer)
        )
        about = {"split": self.name, "paths": self.source.paths, "tokenizer": self.tokenizer_name}
        write_manifest(
            made,
            counts={"fingerprint": final.name, **described},
            report=report,
            about={**about, **asdict(self.settings)},
        )
        _publish(made, final)

    def open(self, final: Path) -> PreparedSet:
        """The set in `final`. Raises DataError when the model has no embedding for one of its tokens."""
        prepared = PreparedSet.open(final)
        check_vocabulary(prepared.max_token_id, self.vocab_size, f"data.{self.name}")
        return prepared


def _make(split: _Split, final: Path, scratch: Path, team: Team) -> None:
    """Read, tokenise and publish; by the whole team. Collective."""
    made = scratch / "set"
    rows = read_rows(split.source, split_name=split.name, cache_folder=scratch / f"cache-{team.rank}")
    if team.size == 1:
        made.mkdir()
        split.publish(made, split.write(rows, made, Share()), final)
        return
    with_space_named = partial(full_disk_named, "prepare data", final.parent, fix=_SPACE_FIX)
    parts = tokenize_together(rows, scratch, split.write, team, guard=with_space_named)

    def merge_and_publish() -> None:
        with with_space_named():
            made.mkdir()
            split.publish(made, merge(parts, made), final)

    team.first(merge_and_publish)


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
def _scratch(final: Path, team: Team) -> Iterator[Path]:
    """A folder beside `final` to work in, gone afterwards whatever happens but a kill. Collective."""

    def make() -> Path:
        with full_disk_named("prepare data", final.parent, fix=_SPACE_FIX):
            final.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(final.parent)
            made = tempfile.mkdtemp(prefix=f"{final.name}.", suffix=_SCRATCH_SUFFIX, dir=final.parent)
            return Path(made)

    scratch = team.first(make)
    try:
        with full_disk_named("prepare data", final.parent, fix=_SPACE_FIX):
            yield scratch
    finally:
        if team.rank == 0:
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
