"""What a class of failures is: how it shows, what it means, what to do next."""

import re
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One class of failures.

    `weight`: which of several causes is told, the lowest: a rank that ran out of memory explains its
    peers' lost connections and the cancelled step, never the other way round.
    """

    name: str
    weight: int
    what: str
    """What happened, to follow `rank 3`."""
    meaning: str
    next_step: str
    source: str
    """Where the words of `patterns` come from."""
    patterns: tuple[str, ...] = ()
    """Regular expressions that a line of a log is searched for."""
    states: frozenset[str] = frozenset()
    """States of a Slurm job that mean it."""
    signals: frozenset[int] = frozenset()
    """Signals that end a rank for it."""
    of_job: bool = False
    """It befalls the whole job and no rank in particular."""
    is_secondary: bool = False
    """What a healthy rank says when another one is gone: that one may know more."""
    matcher: re.Pattern[str] | None = field(init=False, compare=False)

    def __post_init__(self) -> None:
        joined = "|".join(f"(?:{pattern})" for pattern in self.patterns)
        object.__setattr__(self, "matcher", re.compile(joined) if joined else None)

    def shows_in(self, text: str) -> bool:
        """Whether a line of a log shows it."""
        return self.matcher is not None and self.matcher.search(text) is not None
