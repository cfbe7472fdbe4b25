"""Rows -> arrays of a prepared set, in one pass that keeps only lengths in memory.

First `write_tokens`, by one process or by several that share the rows; then `arrange`, by one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatune.data.arrays import ArrayWriter, write_array
from megatune.data.pack import fill_ratio, pack
from megatune.data.prepared import ARRAYS, Report
from megatune.data.textfiles import Row
from megatune.data.tokenize import Tokenized, chat_renderer, end_id, tokenize
from megatune.errors import DataError
from megatune.tasks import TASKS, MissingColumnsError, RenderChat, RowError, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_ROWS = 1000
"""Rows that are tokenised at a time: a fast tokenizer spreads them over the cores."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides, beside the rows and the tokenizer, which tokens come out."""

    task: str
    max_seq_length: int
    packing: bool
    completion_only: bool
    seed: int
    """Decides which examples share a row; without packing it decides nothing."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which batches of rows a process tokenises: every `count`-th, from `index` on."""

    index: int = 0
    count: int = 1

    def has(self, batch: int) -> bool:
        """Whether this process tokenises the batch of that number."""
        return batch % self.count == self.index


@dataclass(kw_only=True)
class Counts:
    """What became of rows so far."""

    lengths: list[int] = field(default_factory=list)
    """Tokens of each example that was kept."""
    batch_examples: list[int] = field(default_factory=list)
    """Examples that were kept of each batch of rows."""
    num_targets: int = 0
    max_token_id: int = 0
    num_rows_read: int = 0
    num_truncated: int = 0
    num_tokens_cut: int = 0
    num_empty: int = 0
    num_too_long: int = 0

    def add(self, other: "Counts") -> None:
        """Count what became of other rows, too. The largest token id is that of both; all else is summed."""
        for counted in fields(self):
            mine, theirs = getattr(self, counted.name), getattr(other, counted.name)
            both = max(mine, theirs) if counted.name == "max_token_id" else mine + theirs
            setattr(self, counted.name, both)


def write_tokens(
    rows: Iterable[Row],
    folder: Path,
    tokenizer: "PreTrainedTokenizerBase",
    settings: Settings,
    *,
    columns: Mapping[str, str],
    split_name: str,
    vocab_size: int | None,
    on_rows: Callable[[int], None],
    share: Share,
) -> Counts:
    """Write the tokens of `share` of the rows to `folder`; give what became of those rows.

    on_rows is called with the number of rows read so far, by all. Raises DataError for a row that
    cannot be used, and for a token that the model has no embedding for.
    """
    end_id(tokenizer)  # refuse a tokenizer without an end before reading anything
    to_segments = _Rows(settings, columns, split_name, chat_renderer(tokenizer))
    counts = Counts()
    num_read = 0
    with array_writer(folder, "tokens") as tokens, array_writer(folder, "is_target") as is_target:
        for number, batch in enumerate(_batches(rows)):
            num_read += len(batch)
            on_rows(num_read)
            if not share.has(number):
                continue
            num_before = len(counts.lengths)
            segments = [to_segments(row) for row in batch]
            for row, found in zip(
                batch, tokenize(segments, tokenizer, max_length=settings.max_seq_length), strict=True
            ):
                if _counted(found, counts):
                    check_vocabulary(int(found.example.input_ids.max()), vocab_size, row.where)
                    tokens.append(found.example.input_ids)
                    is_target.append(found.example.is_target)
            counts.batch_examples.append(len(counts.lengths) - num_before)
    return counts


def check_vocabulary(max_token_id: int, vocab_size: int | None, where: str) -> None:
    """Raises DataError when the embedding of the model has no row for a token id."""
    if vocab_size is not None and max_token_id >= vocab_size:
        raise DataError(
            f"{where}: token id {max_token_id}, but the embedding of the model has {vocab_size} rows "
            f"(ids 0 to {vocab_size - 1}): the vocabulary is larger than the embedding. Use the tokenizer "
            f"that belongs to the model (model.tokenizer), or a model whose embedding was enlarged for it"
        )


class _Rows:
    """Turns rows into segments and adds to every complaint where the row stands."""

    def __init__(
        self, settings: Settings, columns: Mapping[str, str], split_name: str, render_chat: RenderChat | None
    ) -> None:
        self._task = TASKS[settings.task]
        self._completion_only = settings.completion_only
        self._columns, self._split_name, self._render_chat = columns, split_name, render_chat

    def __call__(self, row: Row) -> list[Segment]:
        try:
            return self._task.segments(
                row.values,
                columns=self._columns,
                completion_only=self._completion_only,
                render_chat=self._render_chat,
            )
        except MissingColumnsError as missing:
            raise DataError(f"{row.where} {missing}. {self._mapping_hint(missing.found)}") from None
        except RowError as error:
            raise DataError(f"{row.where} {error}") from None

    def _mapping_hint(self, found: list[str]) -> str:
        ours, theirs = self._task.forms[0][0], found[0] if found else "your_column"
        return (
            f"Say which of your columns to read with data.{self._split_name}.columns, "
            f"for example {{{ours}: {theirs}}}"
        )


def _counted(found: Tokenized, counts: Counts) -> bool:
    """Count what became of one row; whether it is kept."""
    counts.num_rows_read += 1
    num_targets = int(found.example.is_target.sum())
    if num_targets == 0:
        counts.num_too_long += found.num_cut > 0
        counts.num_empty += found.num_cut == 0
        return False
    counts.lengths.append(len(found.example.input_ids))
    counts.num_targets += num_targets
    counts.max_token_id = max(counts.max_token_id, int(found.example.input_ids.max()))
    counts.num_truncated += found.num_cut > 0
    counts.num_tokens_cut += found.num_cut
    return True


def _refuse_nothing(counts: Counts, split_name: str, settings: Settings) -> None:
    if counts.num_rows_read == 0:
        raise DataError(f"data.{split_name} is empty: no row was found in it")
    if not counts.lengths:
        raise DataError(
            f"data.{split_name} has nothing to train on: of {counts.num_rows_read} rows {counts.num_empty} "
            f"hold no text to learn, and in {counts.num_too_long} it begins after data.max_seq_length = "
            f"{settings.max_seq_length} tokens"
        )


def arrange(
    folder: Path, counts: Counts, settings: Settings, *, split_name: str, pad_id: int
) -> tuple[dict[str, object], Report]:
    """Pack the examples into rows, and write which row holds which beside their tokens in `folder`.

    Gives the counts of the set and what became of the rows. Raises DataError when there is nothing to
    train on.
    """
    _refuse_nothing(counts, split_name, settings)
    lengths, width = counts.lengths, settings.max_seq_length
    one_each = [[example] for example in range(len(lengths))]
    rows = pack(lengths, max_length=width, seed=settings.seed) if settings.packing else one_each
    _write(folder, "example_offsets", _offsets(lengths))
    _write(folder, "row_examples", np.array([example for row in rows for example in row], dtype=np.int32))
    _write(folder, "row_offsets", _offsets([len(row) for row in rows]))
    described: dict[str, object] = {
        "num_rows": len(rows),
        "num_examples": len(lengths),
        "num_tokens": sum(lengths),
        "num_targets": counts.num_targets,
        "max_token_id": counts.max_token_id,
        "max_seq_length": width,
        "packed": settings.packing,
        # Some tokenizers pad with an id that was never given a row in the embedding; one that is in
        # the data has a row for certain, and a filler may be any.
        "pad_id": min(pad_id, counts.max_token_id),
    }
    return described, _report(counts, fill_ratio(lengths, num_rows=len(rows), max_length=width))


def _report(counts: Counts, fill: float) -> Report:
    return Report(
        num_rows_read=counts.num_rows_read,
        num_truncated=counts.num_truncated,
        num_tokens_cut=counts.num_tokens_cut,
        num_empty=counts.num_empty,
        num_too_long=counts.num_too_long,
        fill_ratio=fill,
    )


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch


def _offsets(lengths: list[int]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def array_writer(folder: Path, name: str) -> ArrayWriter:
    """Writes the array `name` of a prepared set."""
    return ArrayWriter(folder / f"{name}.npy", ARRAYS[name])


def _write(folder: Path, name: str, values: "np.ndarray[tuple[int], np.dtype[np.int64 | np.int32]]") -> None:
    write_array(folder / f"{name}.npy", values, ARRAYS[name])
