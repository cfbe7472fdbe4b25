"""Which trial is next: successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) with a forecast as prior.

The first rung looks at candidates one by one, always at the one that may be best for all that is known: the
forecast's middle less half a width. It ends when its trials are spent, or when no other can win even two widths
below. Of those measured a third goes up, and a third of those again: every rung above the first takes twice the
first one's steps. A rung goes through its candidates in turn, so that those which stay to the end are measured in
rounds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatune.tune.layouts.candidates import Candidate
from megatune.tune.layouts.forecast import Expected
from megatune.tune.layouts.journal import Trial
from megatune.tune.layouts.objective import Figures, Objective
from megatune.tune.layouts.standing import Standing

_FIRST_SHARE = 0.6
"""Of all trials, for the first rung."""
_KEPT = 3
"""One of so many goes up."""
_EAGER, _SURE = 0.5, 2.0
"""Widths below the middle: of the candidate to look at next, and of one that is given up."""

Forecast = Mapping[int, tuple[Expected, Expected]]
"""Candidate -> seconds a token as expected, and the bytes of the fullest device."""


@dataclass(frozen=True, kw_only=True)
class Next:
    """The trial to make."""

    candidate: int
    rung: int
    steps: int
    why: str


@dataclass(frozen=True)
class Wait:
    """Other workers' trials must end first."""

    open_trials: Sequence[Trial]


@dataclass(frozen=True)
class Done:
    """Nothing is left to try."""

    why: str


def rungs(num_trials: int) -> list[int]:
    """How many candidates each rung measures; together no more than `num_trials`, the last ones two.

    >>> rungs(16)
    [9, 3, 2, 2]
    """
    sizes = [max(2, int(_FIRST_SHARE * num_trials))]
    left = num_trials - sizes[0]
    while left >= 2:
        size = min(left, max(2, math.ceil(sizes[-1] / _KEPT)))
        sizes.append(size)
        left -= size
    return sizes


def next_trial(
    candidates: Sequence[Candidate],
    trials: Sequence[Trial],
    *,
    num_trials: int,
    steps: int,
    objective: Objective,
    judge: Callable[[Sequence[Trial]], Standing],
    forecast: Callable[[Sequence[Trial]], Forecast],
) -> Next | Wait | Done:
    """What to do now. The same trials always give the same answer.

    A rung is decided by the trials of the rungs below it alone: those of its own, as they end, change nothing.
    """
    counting = [trial for trial in trials if trial.counts]
    sizes = rungs(num_trials)
    first = [trial for trial in counting if trial.rung == 0]
    if len(first) < min(sizes[0], len(candidates)):
        found = _look(candidates, first, judge(first), objective, forecast, steps)
        if found is not None:
            return found
    for rung, size in enumerate(sizes[1:], start=1):
        running = [trial for trial in counting if trial.rung == rung - 1 and trial.ended is None]
        if running:
            return Wait(running)
        entrants = _entrants(judge([trial for trial in counting if trial.rung < rung]), rung)[:size]
        if len(entrants) < 2:
            return Done("no other candidate is left to compare with")
        tried = {trial.candidate for trial in counting if trial.rung == rung}
        missing = [number for number in entrants if number not in tried]
        if missing:
            why = f"among the best {len(entrants)} so far"
            return Next(candidate=missing[0], rung=rung, steps=2 * steps, why=why)
    running = [trial for trial in counting if trial.ended is None]
    return Wait(running) if running else Done(f"all {len(counting)} trials are made")


def _entrants(standing: Standing, rung: int) -> list[int]:
    """The candidates that came as far as the rung before and may win, the best first."""
    ready = [one for one in standing.shown.values() if one.is_whole and one.highest_rung == rung - 1]
    return [
        one.candidate.number
        for one in sorted(ready, key=lambda one: (-(one.score or 0.0), one.candidate.number))
    ]


def _look(
    candidates: Sequence[Candidate],
    first: Sequence[Trial],
    standing: Standing,
    objective: Objective,
    forecast: Callable[[Sequence[Trial]], Forecast],
    steps: int,
) -> Next | None:
    """The candidate to look at next; None when no other can win."""
    tried = {trial.candidate for trial in first}
    if 0 not in tried:
        return Next(candidate=0, rung=0, steps=steps, why="the run's own layout: the reference")
    untried = [candidate for candidate in candidates if candidate.number not in tried]
    if not untried:
        return None
    expected = forecast(first)
    reference = standing.reference or _plain(untried[0], expected)
    scores = {
        one.number: [
            _score(one, expected[one.number], reference, objective, widths) for widths in (0.0, _EAGER, _SURE)
        ]
        for one in untried
    }
    chosen = max(untried, key=lambda one: (scores[one.number][1], -one.number))
    middle, _, highest = scores[chosen.number]
    leader = standing.leader
    if leader is None or leader.score is None:
        return Next(candidate=chosen.number, rung=0, steps=steps, why="the planner's first choice")
    if max(score[2] for score in scores.values()) <= leader.score:
        return None
    why = f"expected {middle:.2f} x the reference, at most {highest:.2f}; the best so far has {leader.score:.2f}"
    return Next(candidate=chosen.number, rung=0, steps=steps, why=why)


def _plain(candidate: Candidate, expected: Forecast) -> Figures:
    seconds, peak = expected[candidate.number]
    return Figures(token_s=seconds.value, peak_bytes=peak.value, devices=candidate.devices)


def _score(
    one: Candidate,
    expected: tuple[Expected, Expected],
    reference: Figures,
    objective: Objective,
    widths: float,
) -> float:
    seconds, peak = expected
    figures = Figures(token_s=seconds.low(widths), peak_bytes=peak.low(widths), devices=one.devices)
    return objective.score(figures, reference) or 0.0
