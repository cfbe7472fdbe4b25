"""A pool of tokens -> the arrays of prepared sets, in passes that keep nothing of a row in memory."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatune.data.arrays import ArrayReader, ArrayWriter
from megatune.data.duplicates import num_duplicates
from megatune.data.mixture import Mixture
from megatune.data.pack import pack
from megatune.data.part import LABELS
from megatune.data.pool import Pool, Side
from megatune.data.prepared import TYPES
from megatune.data.quality import Findings, Report
from megatune.data.row_ids import duplicate_ids, write_ids
from megatune.data.tally import Tally
from megatune.errors import DataError

_AT_ONCE = 1 << 16
"""Examples or rows whose numbers are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides how the examples of a pool become rows."""

    max_seq_length: int
    packing: bool
    seed: int
    """Decides which examples share a row; without packing and weights it decides nothing."""
    weights: tuple[float, ...] | None
    """Of the sources; None takes every example once."""
    no_row_twice: bool = False
    """An epoch of a mixture ends with the source that is used up first."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a pool comes from, for messages."""

    split_name: str
    labels_of_files: Sequence[str]


def build_set(
    pool: Pool, side: Side, tally: Tally, folder: Path, settings: Settings, origin: Origin, *, pad_id: int
) -> tuple[dict[str, object], Report]:
    """Write the arrays of one set into `folder`; gives the counts of the set and what became of the rows.

    Raises DataError when no row was found. A set without any example is written as such: see `nothing.py`.
    """
    findings = Findings(max_seq_length=settings.max_seq_length, labels_of_files=origin.labels_of_files)
    examples_of_source = _write_examples(pool, side, folder, findings, tells_dropped=tally.num_too_long > 0)
    if tally.num_rows == 0:
        raise DataError(f"data.{origin.split_name} is empty: no row was found in it")
    mixture = Mixture.of(examples_of_source, settings.weights, settings.no_row_twice, settings.seed)
    has_ids = write_ids(pool, side, folder)
    num_same_ids, first_same_id = duplicate_ids(folder, origin.labels_of_files) if has_ids else (0, None)
    num_rows, num_packed_tokens = _write_rows(folder, mixture, findings.num_examples, settings)
    described: dict[str, object] = {
        "num_rows": num_rows,
        "num_examples": findings.num_examples,
        "num_tokens": findings.num_tokens,
        "num_targets": findings.num_targets,
        "max_token_id": tally.max_token_id,
        "max_seq_length": settings.max_seq_length,
        "packed": settings.packing,
        # Some tokenizers pad with an id that was never given a row in the embedding; one that is in
        # the data has a row for certain, and a filler may be any. A classifier head finds the end of a text by
        # it, so there it stays.
        "files": list(origin.labels_of_files) if has_ids else [],
        "pad_id": pad_id if pool.labels else min(pad_id, tally.max_token_id),
    }
    return described, findings.report(
        tally,
        num_duplicates=num_duplicates(folder / "row_hashes.npy"),
        num_duplicate_ids=num_same_ids,
        first_duplicate_id=first_same_id,
        num_rows=num_rows,
        num_packed_tokens=num_packed_tokens,
    )


def _write_examples(
    pool: Pool, side: Side, folder: Path, findings: Findings, *, tells_dropped: bool
) -> list[int]:
    """Write the examples of the side, and count them for each source."""
    examples_of_source: list[int] = []
    num_tokens = 0
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(array_writer(folder, name))
            for name in ("tokens", "is_target", "example_offsets", "row_hashes", *pool.labels)
        }
        writers["example_offsets"].append(np.zeros(1, dtype=np.int64))
        for block in pool.blocks():
            if tells_dropped:
                findings.see_dropped(block)
            is_chosen = side.has(block.records["hash"])
            chosen = block.records[is_chosen]
            examples_of_source += [0] * (block.source + 1 - len(examples_of_source))
            examples_of_source[block.source] += len(chosen)
            if not len(chosen):
                continue
            # Of a pool that is not divided, every token: a slice does not copy them.
            is_token = slice(None) if is_chosen.all() else np.repeat(is_chosen, block.records["length"])
            writers["tokens"].append(block.tokens[is_token])
            writers["is_target"].append(block.is_target[is_token])
            if block.labels is not None:
                writers[LABELS].append(block.labels[is_token])
            ends = num_tokens + np.cumsum(chosen["length"], dtype=np.int64)
            writers["example_offsets"].append(ends)
            num_tokens = int(ends[-1])
            writers["row_hashes"].append(chosen["hash"][chosen["piece"] == 0])
            findings.see(block, chosen)
    return examples_of_source


def _write_rows(folder: Path, mixture: Mixture, num_examples: int, settings: Settings) -> tuple[int, int]:
    """Write which examples each row holds; gives the number of rows and of the tokens in them."""
    offsets = ArrayReader(folder / "example_offsets.npy")

    def lengths_of(first: int, count: int) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = np.diff(offsets.read(first, count + 1))
        return found

    num_rows = num_placed = num_tokens = 0
    try:
        with (
            array_writer(folder, "row_examples") as row_examples,
            array_writer(folder, "row_offsets") as row_offsets,
        ):
            row_offsets.append(np.zeros(1, dtype=np.int64))
            if settings.packing:
                windows = pack(
                    lengths_of,
                    num_examples,
                    max_length=settings.max_seq_length,
                    seed=settings.seed,
                    copies_of=mixture.copies_of,
                )
                pages = (
                    (np.fromiter(chain.from_iterable(rows), dtype=np.int64), [len(row) for row in rows])
                    for rows in windows
                )
            else:
                pages = ((page, [1] * len(page)) for page in _one_each(mixture, num_examples))
            for examples, sizes in pages:
                row_examples.append(examples.astype(np.int32))
                ends = num_placed + np.cumsum(sizes, dtype=np.int64)
                row_offsets.append(ends)
                num_rows, num_placed = num_rows + len(sizes), int(ends[-1])
        num_tokens = sum(
            int((lengths_of(first, count) * mixture.copies_of(np.arange(first, first + count))).sum())
            for first, count in _pages(num_examples)
        )
    finally:
        offsets.close()
    return num_rows, num_tokens


def _one_each(mixture: Mixture, num_examples: int) -> Iterator[npt.NDArray[np.int64]]:
    for first, count in _pages(num_examples):
        numbers = np.arange(first, first + count)
        repeated = np.repeat(numbers, mixture.copies_of(numbers))
        if len(repeated):
            yield repeated


def _pages(num_examples: int) -> Iterator[tuple[int, int]]:
    for first in range(0, num_examples, _AT_ONCE):
        yield first, min(_AT_ONCE, num_examples - first)


def array_writer(folder: Path, name: str) -> ArrayWriter:
    """Writes the array `name` of a prepared set."""
    return ArrayWriter(folder / f"{name}.npy", TYPES[name])
