"""What a user should know of the prepared splits: of the rows of each, and of rows that stand in two of them."""

from collections.abc import Mapping

from megatune.data.duplicates import num_shared
from megatune.data.prepared import PreparedSet


def split_notices(sets: Mapping[str, PreparedSet]) -> list[str]:
    """All of them, each beginning with the name of its split."""
    own = [
        f"{name}: {notice}"
        for name, prepared in sets.items()
        for notice in prepared.report.notices(prepared.max_seq_length)
    ]
    return own + shared_notices(sets)


def shared_notices(sets: Mapping[str, PreparedSet]) -> list[str]:
    """Of rows that stand in two splits."""
    found = []
    for name, count in num_leaked(sets).items():
        if count:
            say = "row says" if count == 1 else "rows say"
            found.append(f"{name}: {count} {say} what a training row says: the scores show memory there")
    return found


def num_leaked(sets: Mapping[str, PreparedSet]) -> dict[str, int]:
    """Rows of each held-out split that are also training rows."""
    train = sets["train"].row_hashes
    return {
        name: num_shared(held_out.row_hashes, train) for name, held_out in sets.items() if name != "train"
    }
