"""What one process makes of its share of the rows: arrays in a folder, and what became of the rows.

A part is written as the rows are read; nothing in memory grows with their number but 40 bytes a block.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatune.data.arrays import ArrayWriter
from megatune.data.jsonfiles import RangeRows
from megatune.data.labelled import labeller
from megatune.data.read import FileBlock
from megatune.data.rows import Row
from megatune.data.segmenting import Segmenting, content_hash, id_hash
from megatune.data.tally import Tally, lacks_input
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
        ("answer", "u8"),  # a hash of the answer, 0 where answers are no classes
        ("length", "i4"),
        ("cut", "i4"),  # tokens of the row that were left out
        ("targets", "i4"),
        ("unknown", "i4"),
        ("row", "i4"),  # in its block, as its place says
        ("line", "i4"),  # 0 where there is none
        ("piece", "i4"),  # of a row that was divided, from 0
        ("no_input", "?"),  # the row has an answer and nothing to answer
    ]
)
DROPPED = np.dtype([("length", "i4"), ("row", "i4"), ("line", "i4"), ("answer", "u8")])
"""A row that was dropped as too long: its tokens, and its place and answer as in EXAMPLE."""
BLOCK = np.dtype(
    [
        ("source", "i4"),
        ("file", "i4"),
        ("examples", "i8"),
        ("dropped", "i8"),
        ("rows", "i8"),  # to add, with `lines`, to the places of later blocks of the file
        ("lines", "i8"),
    ]
)
PART_ARRAYS = {
    "tokens": np.dtype("i4"),
    "is_target": np.dtype("?"),
    "examples": EXAMPLE,
    "dropped": DROPPED,
    "blocks": BLOCK,
}
LABELS = "labels"
"""Of each token, beside `tokens`, in parts that are made for a classifier head."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which blocks a process reads: every `count`-th, from `index` on."""

    index: int = 0
    count: int = 1

    def has(self, block: int) -> bool:
        """Whether this process reads the block of that number."""
        return block % self.count == self.index


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
    before = [arrays[name].length for name in ("examples", "dropped")]
    segmenting = settings.segmenting[found.source]
    label = None if settings.head == "lm" else labeller(segmenting.task, tokenizer)
    for batch in _batches(rows, segmenting, render_chat):
        if label is None:
            examples = tokenize([segments for _, segments, _ in batch], tokenizer, settings.limit)
        else:
            examples = [
                segmenting.labelled(row, label, settings.limit) if segments else []
                for row, segments, _ in batch
            ]
        _write_batch(batch, examples, arrays, tokenizer, settings, tally)
    counted = (rows.num_rows, rows.num_lines) if isinstance(rows, RangeRows) else (0, 0)
    written = [
        arrays[name].length - length for name, length in zip(("examples", "dropped"), before, strict=True)
    ]
    arrays["blocks"].append(np.array([(found.source, found.file, *written, *counted)], dtype=BLOCK))


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
    records, dropped = [], []
    for (row, segments, hashed), pieces in zip(batch, examples, strict=True):
        kept = _kept(pieces, tally)
        place = row.place.number, row.place.line or 0
        if not kept and any(item.num_cut for item in pieces):
            dropped.append((_num_tokens(pieces), *place, tally.see_dropped(segments)))
        answer = tally.see_answer(segments) if kept else 0
        for piece, item in enumerate(kept):
            example = item.example
            ids.append(example.input_ids)
            masks.append(example.is_target)
            labels.append(example.labels)
            largest = int(example.input_ids.max())
            if largest > tally.max_token_id:
                tally.max_token_id = largest
                check_vocabulary(largest, settings.vocab_size, row.where)
            about = _about(item, unknown_id)
            no_input = lacks_input(segments)
            records.append((hashed, id_hash(row.values), answer, *about, *place, piece, no_input))
    if dropped:
        arrays["dropped"].append(np.array(dropped, dtype=DROPPED))
    if records:
        arrays["tokens"].append(np.concatenate(ids))
        arrays["is_target"].append(np.concatenate(masks))
        if LABELS in arrays:
            arrays[LABELS].append(np.concatenate(labels))
        arrays["examples"].append(np.array(records, dtype=EXAMPLE))


def _about(item: Tokenized, unknown_id: int | None) -> tuple[int, int, int, int]:
    """(tokens, tokens cut, targets, unknown tokens) of an example."""
    ids = item.example.input_ids
    unknown = 0 if unknown_id is None else int((ids == unknown_id).sum())
    return len(ids), item.num_cut, int(np.count_nonzero(item.example.is_target)), unknown


def _num_tokens(pieces: list[Tokenized]) -> int:
    """Of a row, before anything was cut."""
    return sum(len(item.example.input_ids) + item.num_cut for item in pieces)


def _kept(pieces: list[Tokenized], tally: Tally) -> list[Tokenized]:
    """The examples of one row that have something to learn; counts what became of the row."""
    tally.num_rows += 1
    kept = [item for item in pieces if item.example.is_target.any()]
    if not kept and any(item.num_cut for item in pieces):
        tally.num_too_long += 1
    elif not kept:
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
