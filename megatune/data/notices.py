"""What a user should know of the prepared splits: of the rows of each, and of rows that stand in two of them."""

from collections.abc import Mapping

from megatune.data.overlaps import Overlap, find_overlaps
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
    found, overlaps = _unlearned(sets), find_overlaps(sets)
    for name, count in _leaked(overlaps).items():
        if count:
            say = "row says" if count == 1 else "rows say"
            found.append(f"{name}: {count} {say} what a training row says: the scores show memory there")
    return found + [
        _shared_ids(sets, later, earlier, overlap)
        for (later, earlier), overlap in overlaps.items()
        if overlap.num_ids
    ]


def _shared_ids(sets: Mapping[str, PreparedSet], later: str, earlier: str, overlap: Overlap) -> str:
    """Of rows of one split that have the id of a row of another."""
    assert overlap.first_id is not None, "the first of some"
    have = "row has" if overlap.num_ids == 1 else "rows have"
    mine, theirs = overlap.first_id
    return (
        f"{later}: {overlap.num_ids} {have} the id of a row of {earlier}; the first: {sets[later].place_of(mine)}, as "
        f"{sets[earlier].place_of(theirs)}"
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
    return _leaked(find_overlaps(sets))


def _leaked(overlaps: Mapping[tuple[str, str], Overlap]) -> dict[str, int]:
    return {later: overlap.num_rows for (later, earlier), overlap in overlaps.items() if earlier == "train"}
