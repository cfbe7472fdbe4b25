"""What a user should know of the prepared splits: of the rows of each, and of rows that stand in two of them."""

from collections.abc import Mapping
from itertools import combinations

from megatune.data.duplicates import first_shared, num_shared
from megatune.data.prepared import PreparedSet

_ROWS_OF_A_CLASS = 5
"""Fewer rows an answer, on average, and answers are texts of their own."""


def split_notices(sets: Mapping[str, PreparedSet]) -> list[str]:
    """All of them, each beginning with the name of its split."""
    own = [
        f"{name}: {notice}"
        for name, prepared in sets.items()
        for notice in prepared.report.notices(prepared.max_seq_length)
    ]
    return own + shared_notices(sets)


def shared_notices(sets: Mapping[str, PreparedSet]) -> list[str]:
    """Of rows that stand in two splits, and of answers that one lacks."""
    found = _unlearned(sets)
    for name, count in num_leaked(sets).items():
        if count:
            say = "row says" if count == 1 else "rows say"
            found.append(f"{name}: {count} {say} what a training row says: the scores show memory there")
    pairs = combinations(sets.items(), 2)
    return found + [
        notice for (earlier, later) in pairs if (notice := _shared_ids(later, earlier)) is not None
    ]


def _shared_ids(later: tuple[str, PreparedSet], earlier: tuple[str, PreparedSet]) -> str | None:
    """Of rows of one split that have the id of a row of another."""
    (name, own), (other_name, other) = later, earlier
    if own.row_ids is None or other.row_ids is None:
        return None
    first = first_shared(own.row_ids, other.row_ids)
    if first is None:
        return None
    count = num_shared(own.row_ids, other.row_ids)
    have = "row has" if count == 1 else "rows have"
    return (
        f"{name}: {count} {have} the id of a row of {other_name}; the first: {own.place_of(first[0])}, as "
        f"{other.place_of(first[1])}"
    )


def _unlearned(sets: Mapping[str, PreparedSet]) -> list[str]:
    """Of held-out answers that no training row has, where answers are classes: each comes several times."""
    learned = sets["train"].report.labels
    if not learned or sum(learned.values()) < _ROWS_OF_A_CLASS * len(learned):
        return []
    found = []
    for name, prepared in sets.items():
        lacking = sorted(set(prepared.report.labels or ()) - set(learned))
        if lacking:
            shown = ", ".join(map(repr, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
            found.append(f"WARNING: {name}: no training row has the answer {shown}")
    return found


def num_leaked(sets: Mapping[str, PreparedSet]) -> dict[str, int]:
    """Rows of each held-out split that are also training rows."""
    train = sets["train"].row_hashes
    return {
        name: num_shared(held_out.row_hashes, train) for name, held_out in sets.items() if name != "train"
    }
