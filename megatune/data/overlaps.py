"""Rows that stand in two prepared sets: looked for once, and kept beside the later set."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from megatune.data.duplicates import first_shared, num_shared
from megatune.data.prepared import PreparedSet
from megatune.files import write_text_atomic


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What a set has of another one."""

    num_rows: int
    """Rows that say what a row of the other says."""
    num_ids: int
    """Rows that have the id of a row of the other; 0 where one of them has no ids."""
    first_id: tuple[int, int] | None
    """The number of the first of those, and that of the row of the other."""


def find_overlaps(sets: Mapping[str, PreparedSet]) -> dict[tuple[str, str], Overlap]:
    """By (later, earlier) names of all pairs, in the order of `sets`.

    The first time all hashes are read, which takes minutes where rows are billions. What was found is kept in the
    folder of the later set, whose rows never change; where that cannot be written, a line on stderr says so.
    """
    return {
        (later, earlier): _overlap(sets[later], sets[earlier]) for earlier, later in combinations(sets, 2)
    }


def _overlap(later: PreparedSet, earlier: PreparedSet) -> Overlap:
    file = later.folder / f"shared-with-{earlier.fingerprint}.json"
    kept = _kept(file)
    if kept is not None:
        return kept
    found = _found(later, earlier)
    try:
        write_text_atomic(file, json.dumps(asdict(found)) + "\n")
    except OSError as error:  # a folder of somebody else, or a full disk: no reason not to train
        print(f"megatune: {error}; rows in two splits are looked for again next time", file=sys.stderr)
    return found


def _kept(file: Path) -> Overlap | None:
    """None where nothing was kept, or what was is damaged."""
    try:
        fields = json.loads(file.read_text())
        first = fields.pop("first_id")
        return Overlap(**fields, first_id=None if first is None else (int(first[0]), int(first[1])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def _found(later: PreparedSet, earlier: PreparedSet) -> Overlap:
    num_rows = num_shared(later.row_hashes, earlier.row_hashes)
    if later.row_ids is None or earlier.row_ids is None:
        return Overlap(num_rows=num_rows, num_ids=0, first_id=None)
    first = first_shared(later.row_ids, earlier.row_ids)
    num_ids = 0 if first is None else num_shared(later.row_ids, earlier.row_ids)
    return Overlap(num_rows=num_rows, num_ids=num_ids, first_id=first)
