"""Which of several failed ranks made the others fail: one rule, for a start that was watched and for old logs."""

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol, TypeVar

from megatune.launch import rank_logs
from megatune.launch.processes import GOOD_ENDS

USER_ERROR = 2


class Guilt(IntEnum):
    """How likely a rank's end is the cause of the others'; the lowest is the culprit."""

    USER_ERROR = 0
    KILLED = 1
    FAILED_ITSELF = 2
    SILENT = 3
    """How it ended is unknown, and it said nothing about it."""
    LOST_A_PEER = 4
    ENDED_BY_US = 5


class RankEnd(Protocol):
    """How a rank ended, as far as it is known."""

    @property
    def rank(self) -> int:
        """Its number."""

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None when nobody saw it."""

    @property
    def output(self) -> str:
        """What it printed."""

    @property
    def stopped_by_us(self) -> bool:
        """Whether it was told to end because another rank had failed."""


End = TypeVar("End", bound=RankEnd)


def find_culprit(ends: Sequence[End]) -> End:
    """The rank whose failure made the others fail; of equals one that its words name, or the first that ended.

    A rank that dies takes its peers with it, and a peer may well be gone before the first one has
    finished shutting down. So the order of ending is the last thing asked.
    """
    failed = [ended for ended in ends if ended.code not in GOOD_ENDS]
    assert failed, "called only when a rank failed"
    return min(failed, key=lambda ended: (guilt(ended), not _names_itself(ended)))


def _names_itself(ended: RankEnd) -> bool:
    """Ranks whose save has failed together all end with the words of the one that could not write."""
    tail = rank_logs.failure_tail(ended.output)
    return re.search(rf"\brank {ended.rank}(?:: | failed: )", tail) is not None


def is_cause(ended: RankEnd) -> bool:
    """Whether a rank failed of itself, not because others were gone or because we ended it."""
    return ended.code not in GOOD_ENDS and guilt(ended) < Guilt.SILENT


def guilt(ended: RankEnd) -> Guilt:
    """How likely the end of a failed rank is the cause of the others'."""
    if ended.code == USER_ERROR:
        return Guilt.USER_ERROR
    if ended.code is not None and ended.code < 0:
        return Guilt.ENDED_BY_US if ended.stopped_by_us else Guilt.KILLED
    tail = rank_logs.failure_tail(ended.output)
    if rank_logs.lost_a_peer(tail):
        return Guilt.LOST_A_PEER
    is_silent = ended.code is None and not rank_logs.has_failure(tail)
    return Guilt.SILENT if is_silent else Guilt.FAILED_ITSELF
