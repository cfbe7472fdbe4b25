"""What one process makes of its share of the rows: arrays in a folder, and what became of the rows.

A part is written as the rows are read; nothing in memory grows with their number but 40 bytes a block.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megatune.data.arrays import ArrayWriter
from megatune.data.examples import Examples
from megatune.data.jsonfiles import RangeRows
from megatune.data.labelled import labeller
from megatune.data.read import FileBlock
from megatune.data.rows import Row
from megatune.data.segmenting import Segmenting, id_hash
from megatune.data.tally import Tally, lacks_input
from megatune.data.tokenize import Limit, chat_renderer, end_id, tokenize
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
    unknown_id = _unknown_id(tokenizer)
    before = [arrays[name].length for name in ("examples", "dropped")]
    segmenting = settings.segmenting[found.source]
    label = None if settings.head == "lm" else labeller(segmenting.task, tokenizer)
    for batch in _batches(rows, segmenting, render_chat):
        if label is None:
            examples = tokenize(batch.segments, tokenizer, settings.limit)
        else:
            examples = segmenting.labelled(batch.rows, batch.segments, label, settings.limit)
        _write_batch(batch, examples, arrays, settings.vocab_size, unknown_id, tally)
    counted = (rows.num_rows, rows.num_lines) if isinstance(rows, RangeRows) else (0, 0)
    written = [
        arrays[name].length - length for name, length in zip(("examples", "dropped"), before, strict=True)
    ]
    arrays["blocks"].append(np.array([(found.source, found.file, *written, *counted)], dtype=BLOCK))


@dataclass(frozen=True)
class _Batch:
    """Rows that are tokenised at a time, and what is known of each before that."""

    rows: list[Row] = field(default_factory=list)
    segments: list[list[Segment]] = field(default_factory=list)
    known: list[tuple[int, int, int, int, bool]] = field(default_factory=list)
    """As in _KNOWN."""

    def add(self, row: Row, segments: list[Segment], hashed: int) -> None:
        """One more row, and the hash of what it says."""
        self.rows.append(row)
        self.segments.append(segments)
        place = row.place.number, row.place.line or 0
        self.known.append((hashed, id_hash(row.values), *place, lacks_input(segments)))


_KNOWN = np.dtype([(name, EXAMPLE[name]) for name in ("hash", "id", "row", "line", "no_input")])


def _batches(rows: Iterable[Row], segmenting: Segmenting, render_chat: RenderChat | None) -> Iterator[_Batch]:
    """Rows with their segments, about BATCH_CHARS characters at a time."""
    batch = _Batch()
    num_chars = 0
    for row in rows:
        segments, hashed = segmenting.read(row, render_chat)
        batch.add(row, segments, hashed)
        num_chars += sum([len(segment.text) for segment in segments])
        if num_chars >= BATCH_CHARS:
            yield batch
            batch, num_chars = _Batch(), 0
    if batch.rows:
        yield batch


def _write_batch(
    batch: _Batch,
    examples: Examples,
    arrays: dict[str, ArrayWriter],
    vocab_size: int | None,
    unknown_id: int | None,
    tally: Tally,
) -> None:
    num_rows = len(batch.rows)
    kept = examples.chosen(examples.count(examples.is_target) > 0)
    num_cut = np.bincount(examples.rows, weights=examples.num_cut, minlength=num_rows)
    num_kept = np.bincount(kept.rows, minlength=num_rows)
    is_dropped = (num_kept == 0) & (num_cut > 0)
    answers = tally.see(batch.segments, is_kept=num_kept > 0, is_dropped=is_dropped)
    known = np.array(batch.known, dtype=_KNOWN)
    if is_dropped.any():
        lengths = np.bincount(examples.rows, weights=examples.lengths, minlength=num_rows) + num_cut
        dropped = np.empty(num_rows, dtype=DROPPED)
        dropped["length"], dropped["answer"] = lengths, answers
        dropped["row"], dropped["line"] = known["row"], known["line"]
        arrays["dropped"].append(dropped[is_dropped])
    if len(kept):
        _check_tokens(kept, batch, vocab_size, tally)
        arrays["tokens"].append(kept.input_ids)
        arrays["is_target"].append(kept.is_target)
        if kept.labels is not None:
            arrays[LABELS].append(kept.labels)
        arrays["examples"].append(_records(kept, known, answers, unknown_id))


def _records(
    kept: Examples, known: npt.NDArray[Any], answers: npt.NDArray[np.uint64], unknown_id: int | None
) -> npt.NDArray[Any]:
    """What is told of each example, as EXAMPLE."""
    found = np.empty(len(kept), dtype=EXAMPLE)
    for name in _KNOWN.names or ():
        found[name] = known[name][kept.rows]
    found["answer"] = answers[kept.rows]
    found["length"], found["cut"], found["piece"] = kept.lengths, kept.num_cut, kept.pieces
    found["targets"] = kept.count(kept.is_target)
    found["unknown"] = 0 if unknown_id is None else kept.count(kept.input_ids == unknown_id)
    return found


def _check_tokens(kept: Examples, batch: _Batch, vocab_size: int | None, tally: Tally) -> None:
    """Raises DataError with the place of the first row with a token that the model has no embedding for."""
    largest = int(kept.input_ids.max())
    tally.max_token_id = max(tally.max_token_id, largest)
    if vocab_size is not None and largest >= vocab_size:
        at = int(np.argmax(kept.input_ids >= vocab_size))
        row = kept.rows[np.searchsorted(np.cumsum(kept.lengths), at, side="right")]
        check_vocabulary(int(kept.input_ids[at]), vocab_size, batch.rows[row].where)


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
