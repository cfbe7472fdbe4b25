"""The parts of all processes, read as one: block by block, in the order of the rows."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatune.data.arrays import ArrayReader
from megatune.data.pack import mixed
from megatune.data.part import DROPPED, LABELS, PART_ARRAYS
from megatune.errors import DataError

Values = npt.NDArray[Any]
_TOP_BITS = 16


@dataclass(frozen=True)
class PoolBlock:
    """The examples of one block of rows."""

    source: int
    file: int
    rows_before: int
    """What to add to the `row` and the `line` of the records to get those of the file."""
    lines_before: int
    records: Values
    """(examples,), of the type `part.EXAMPLE`."""
    dropped: Values
    """(rows,), of the type `part.DROPPED`; empty without tokens."""
    tokens: Values
    is_target: Values
    labels: Values | None = None
    """Of each token, for a classifier head."""


class Pool:
    """What was written by processes of which each had every `len(folders)`-th block."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self.labels = (LABELS,) if (folders[0] / f"{LABELS}.npy").exists() else ()
        """The array of labels that the parts have, if they are for a classifier head."""

    def blocks(self, *, with_tokens: bool = True) -> Iterator[PoolBlock]:
        """All blocks, in the order of the rows. Without tokens their arrays are empty."""
        names = (*PART_ARRAYS, *self.labels) if with_tokens else ("examples", "blocks")
        parts = [{n: ArrayReader(folder / f"{n}.npy") for n in names} for folder in self._folders]
        before: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
        try:
            for number in range(sum(part["blocks"].length for part in parts)):
                part = parts[number % len(parts)]
                (block,) = part["blocks"].next(1)
                records = part["examples"].next(int(block["examples"]))
                dropped = part["dropped"].next(int(block["dropped"])) if with_tokens else np.empty(0, DROPPED)
                num_tokens = int(records["length"].sum()) if with_tokens else 0
                tokens, targets = (
                    (part[n].next(num_tokens) if with_tokens else np.empty(0))
                    for n in ("tokens", "is_target")
                )
                seen = before[int(block["file"])]
                place = int(block["source"]), int(block["file"]), seen[0], seen[1]
                labels = part[LABELS].next(num_tokens) if self.labels and with_tokens else None
                yield PoolBlock(*place, records, dropped, tokens, targets, labels)
                seen[0] += int(block["rows"])
                seen[1] += int(block["lines"])
        finally:
            for part in parts:
                for reader in part.values():
                    reader.close()


@dataclass(frozen=True, kw_only=True)
class Side:
    """Which rows of a pool belong to a set: those whose keys are in a range."""

    seed: int = 0
    above: int = -1
    """Keys must be larger than this."""
    up_to: int = 2**64 - 1
    """And at most this."""

    def has(self, hashes: Values) -> npt.NDArray[np.bool_]:
        """Which rows belong to it; equal rows always do together."""
        keys = _keys(hashes, self.seed)
        above = np.ones(len(keys), dtype=bool) if self.above < 0 else keys > np.uint64(self.above)
        found: npt.NDArray[np.bool_] = above & (keys <= np.uint64(self.up_to))
        return found


def divide(pool: Pool, val_size: float, seed: int) -> tuple[Side, Side]:
    """The training and the validation side of a pool: `val_size` of its rows, a share or a number.

    The rows with the smallest keys are taken, a key being a hash of what the row says: which rows are
    taken depends on the rows and the seed alone, and equal ones stay together, so that there may be
    some more than asked for. Two passes over the hashes, no more of them in memory than a 65536th.
    Raises DataError when one side would be empty.
    """
    bins = np.zeros(2**_TOP_BITS, dtype=np.int64)
    for keys in _row_keys(pool, seed):
        bins += np.bincount((keys >> np.uint64(64 - _TOP_BITS)).astype(np.int64), minlength=len(bins))
    total = int(bins.sum())
    wanted = min(max(1, round(val_size * total if val_size < 1 else val_size)), total)
    at = int(np.searchsorted(np.cumsum(bins), wanted))
    within = wanted - int(bins[:at].sum())
    chosen = [keys[keys >> np.uint64(64 - _TOP_BITS) == at] for keys in _row_keys(pool, seed)]
    largest = int(np.sort(np.concatenate(chosen))[within - 1]) if total else 0
    taken = sum(int((keys <= np.uint64(largest)).sum()) for keys in _row_keys(pool, seed))
    if taken >= total:
        raise DataError(
            f"data.val_size = {val_size:g} of {total} usable rows leaves none to train on (equal rows stay together). "
            "Give a smaller val_size, or more rows"
        )
    return Side(seed=seed, above=largest), Side(seed=seed, up_to=largest)


def _row_keys(pool: Pool, seed: int) -> Iterator[Values]:
    for block in pool.blocks(with_tokens=False):
        records = block.records
        yield _keys(records["hash"][records["piece"] == 0], seed)


def _keys(hashes: Values, seed: int) -> Values:
    return mixed(hashes ^ mixed(np.array([seed], dtype=np.uint64)))
