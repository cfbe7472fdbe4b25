"""What one process makes of its share of the rows: arrays in a folder, and what became of the rows.

A part is written as the rows are read; nothing in memory grows with their number but 40 bytes a block.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatune.data.arrays import ArrayWriter
from megatune.data.jsonfiles import RangeRows
from megatune.data.labelled import labeller
from megatune.data.read import FileBlock
from megatune.data.rows import Row
from megatune.data.segmenting import Segmenting, content_hash, id_hash
from megatune.data.tokenize import Limit, Tokenized, chat_renderer, end_id, tokenize
from megatune.errors import DataError
from megatune.tasks import RenderChat, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_CHARS = 1 << 18
"""Characters that are tokenised at a time: what the tokenizer makes of one takes some hundred bytes."""
EXAMPLE = np.dtype(
    [
        ("hash", "u8"),  # of what the row says
        ("id", "u8"),  # a hash of the row's id, 0 for none
        ("length", "i4"),
        ("cut", "i4"),  # tokens of the row that were left out
        ("targets", "i4"),
        ("unknown", "i4"),
        ("row", "i4"),  # in its block, as its place says
        ("line", "i4"),  # 0 where there is none
        ("piece", "i4"),  # of a row that was divided, from 0
    ]
)
BLOCK = np.dtype(
    [
        ("source", "i4"),
        ("file", "i4"),
        ("examples", "i8"),
        ("rows", "i8"),  # to add, with `lines`, to the places of later blocks of the file
        ("lines", "i8"),
    ]
)
PART_ARRAYS = {"tokens": np.dtype("i4"), "is_target": np.dtype("?"), "examples": EXAMPLE, "blocks": BLOCK}
LABELS = "labels"
"""Of each token, beside `tokens`, in parts that are made for a classifier head."""
_MOST_LABELS = 200
_LONGEST_LABEL_CHARS = 80


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which blocks a process reads: every `count`-th, from `index` on."""

    index: int = 0
    count: int = 1

    def has(self, block: int) -> bool:
        """Whether this process reads the block of that number."""
        return block % self.count == self.index


@dataclass(kw_only=True)
class Tally:
    """What became of rows."""

    num_rows: int = 0
    num_empty: int = 0
    num_too_long: int = 0
    num_without_input: int = 0
    """Rows that have an answer and an empty question."""
    labels: Counter[str] | None = field(default_factory=Counter)
    """Short answers and how often they come; None where there are too many to be classes."""
    max_token_id: int = 0

    @property
    def num_kept(self) -> int:
        """Rows that became examples."""
        return self.num_rows - self.num_empty - self.num_too_long

    def without_dropped(self) -> "Tally":
        """The same where the rows without an example are told elsewhere."""
        return Tally(num_rows=self.num_rows, labels=None, max_token_id=self.max_token_id)

    def add(self, other: "Tally") -> None:
        """Count what became of other rows, too."""
        self.num_rows += other.num_rows
        self.num_empty += other.num_empty
        self.num_too_long += other.num_too_long
        self.num_without_input += other.num_without_input
        self.max_token_id = max(self.max_token_id, other.max_token_id)
        if self.labels is not None:
            self.labels = None if other.labels is None else _few(self.labels + other.labels)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Tally":
        """The tally whose fields went through JSON."""
        labels = fields["labels"]
        return cls(**{**fields, "labels": None if labels is None else Counter(labels)})

    def see_label(self, segments: Sequence[Segment]) -> None:
        """Count the answer of a row that has one behind something that is only read."""
        if self.labels is None:
            return
        if not segments or all(segment.is_target for segment in segments):
            self.labels = None
            return
        label = "".join(segment.text for segment in segments if segment.is_target).strip()
        self.labels[label] += 1
        self.labels = _few(self.labels) if len(label) <= _LONGEST_LABEL_CHARS else None


def _few(labels: Counter[str]) -> Counter[str] | None:
    return labels if len(labels) <= _MOST_LABELS else None


@dataclass(frozen=True, kw_only=True)
class PartSettings:
    """What decides, beside the rows and the tokenizer, which tokens come out."""

    segmenting: tuple[Segmenting, ...]
    """One for each source."""
    limit: Limit
    vocab_size: int | None
    head: str = "lm"
    """lm, or classifier: then tokens have labels beside them."""

    @property
    def arrays(self) -> dict[str, np.dtype[Any]]:
        """The arrays of a part, and what they hold."""
        return PART_ARRAYS if self.head == "lm" else {**PART_ARRAYS, LABELS: np.dtype("i4")}


OnBlock = Callable[[int, int], None]
"""Told of each block how many rows of it were written by this process, and its bytes."""


def write_part(
    blocks: Iterable[FileBlock],
    folder: Path,
    tokenizer: "PreTrainedTokenizerBase",
    settings: PartSettings,
    *,
    share: Share,
    on_block: OnBlock,
    may_go_on: Callable[[int], bool] = lambda _: True,
) -> Tally:
    """Write what becomes of `share` of the blocks into `folder`.

    may_go_on: asked before each block of our own. Raises PartError, which knows its block, for a row
    that cannot be used, or a token that the model has no embedding for.
    """
    end_id(tokenizer)  # refuse a tokenizer without an end before reading anything
    tally = Tally()
    at, is_own = -1, False
    with ExitStack() as stack:
        arrays = {
            name: stack.enter_context(ArrayWriter(folder / f"{name}.npy", kind))
            for name, kind in settings.arrays.items()
        }
        try:
            for at, found in enumerate(blocks):
                is_own = share.has(at)
                if is_own and not may_go_on(at):
                    break
                before = tally.num_rows
                if is_own:
                    _write_block(found, arrays, tokenizer, settings, tally)
                on_block(tally.num_rows - before, found.block.num_bytes)
                is_own = False
        except DataError as error:
            raise PartError(str(error), block=at if is_own else at + 1) from None
    return tally


class PartError(DataError):
    """Why a process could not go on, and at which block."""

    def __init__(self, text: str, *, block: int) -> None:
        super().__init__(text)
        self.block = block


def _write_block(
    found: FileBlock,
    arrays: dict[str, ArrayWriter],
    tokenizer: "PreTrainedTokenizerBase",
    settings: PartSettings,
    tally: Tally,
) -> None:
    rows = found.block.rows()
    render_chat = chat_renderer(tokenizer)
    num_examples = arrays["examples"].length
    segmenting = settings.segmenting[found.source]
    label = None if settings.head == "lm" else labeller(segmenting.task, tokenizer)
    for batch in _batches(rows, segmenting, render_chat):
        if label is None:
            examples = tokenize([segments for _, segments, _ in batch], tokenizer, settings.limit)
        else:
            examples = [segmenting.labelled(row, label, settings.limit) for row, _, _ in batch]
        _write_batch(batch, examples, arrays, tokenizer, settings, tally)
    counted = (rows.num_rows, rows.num_lines) if isinstance(rows, RangeRows) else (0, 0)
    written = arrays["examples"].length - num_examples
    arrays["blocks"].append(np.array([(found.source, found.file, written, *counted)], dtype=BLOCK))


_Batch = list[tuple[Row, list[Segment], int]]


def _batches(rows: Iterable[Row], segmenting: Segmenting, render_chat: RenderChat | None) -> Iterator[_Batch]:
    """Rows with their segments and the hash of those, about BATCH_CHARS characters at a time."""
    batch: _Batch = []
    num_chars = 0
    for row in rows:
        segments = segmenting.segments(row, render_chat)
        batch.append((row, segments, content_hash(segments, row)))
        num_chars += sum(len(segment.text) for segment in segments)
        if num_chars >= BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _write_batch(
    batch: _Batch,
    examples: list[list[Tokenized]],
    arrays: dict[str, ArrayWriter],
    tokenizer: "PreTrainedTokenizerBase",
    settings: PartSettings,
    tally: Tally,
) -> None:
    unknown_id = _unknown_id(tokenizer)
    ids: list[Any] = []
    masks: list[Any] = []
    labels: list[Any] = []
    records = []
    for (row, segments, hashed), pieces in zip(batch, examples, strict=True):
        kept = _kept(pieces, segments, tally)
        for piece, item in enumerate(kept):
            example = item.example
            ids.append(example.input_ids)
            masks.append(example.is_target)
            labels.append(example.labels)
            largest = int(example.input_ids.max())
            if largest > tally.max_token_id:
                tally.max_token_id = largest
                check_vocabulary(largest, settings.vocab_size, row.where)
            unknown = 0 if unknown_id is None else int((example.input_ids == unknown_id).sum())
            num_targets = int(np.count_nonzero(example.is_target))
            place = row.place.number, row.place.line or 0
            records.append(
                (
                    hashed,
                    id_hash(row.values),
                    len(example.input_ids),
                    item.num_cut,
                    num_targets,
                    unknown,
                    *place,
                    piece,
                )
            )
    if records:
        arrays["tokens"].append(np.concatenate(ids))
        arrays["is_target"].append(np.concatenate(masks))
        if LABELS in arrays:
            arrays[LABELS].append(np.concatenate(labels))
        arrays["examples"].append(np.array(records, dtype=EXAMPLE))


def _kept(pieces: list[Tokenized], segments: Sequence[Segment], tally: Tally) -> list[Tokenized]:
    """The examples of one row that have something to learn; counts what became of the row."""
    tally.num_rows += 1
    kept = [item for item in pieces if item.example.is_target.any()]
    if kept:
        tally.see_label(segments)
        if len(segments) > 1 and not any(s.text.strip() for s in segments if not s.is_target):
            tally.num_without_input += not all(s.is_target for s in segments)
    elif any(item.num_cut for item in pieces):
        tally.num_too_long += 1
    else:
        tally.num_empty += 1
    return kept


def _unknown_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The id of what the tokenizer has no token for; None where that id has another meaning, too."""
    unknown: object = tokenizer.unk_token_id
    others = (tokenizer.eos_token_id, tokenizer.bos_token_id)
    return unknown if isinstance(unknown, int) and unknown not in others else None


def check_vocabulary(max_token_id: int, vocab_size: int | None, where: str) -> None:
    """Raises DataError when the embedding of the model has no row for a token id."""
    if vocab_size is not None and max_token_id >= vocab_size:
        raise DataError(
            f"{where}: token id {max_token_id}, but the embedding of the model has {vocab_size} rows "
            f"(ids 0 to {vocab_size - 1}): the vocabulary is larger than the embedding. Use the tokenizer "
            f"that belongs to the model (model.tokenizer), or a model whose embedding was enlarged for it"
        )
