"""Where a tune stands: what every candidate has shown, and which of them may win."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from megatune.report.losses import LOSS_TOLERANCE, first_difference
from megatune.tune.layouts.candidates import Candidate
from megatune.tune.layouts.journal import GOOD, SLOW, Trial
from megatune.tune.layouts.measure import Clock, Measure
from megatune.tune.layouts.objective import Figures, Objective

_COMPARED_STEPS = 20
"""Later losses are not compared: each step builds on the one before, and rounding grows with them."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the trials of one candidate have shown."""

    candidate: Candidate
    trials: Sequence[Trial]
    figures: Figures | None
    """Medians over all its timed steps; None without a trial that was measured."""
    score: float | None
    """How many times as good as the reference; None while there is none, or for a candidate that may not win."""
    refused: str | None
    """Why it may not win: its last failure, or a loss that is not the reference's."""

    @property
    def is_whole(self) -> bool:
        """Whether it may win: no trial failed, was ended early or computed something else."""
        return self.score is not None and all(t.ended is None or t.ended.outcome == GOOD for t in self.trials)

    @property
    def highest_rung(self) -> int:
        return max(trial.rung for trial in self.trials)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """All candidates that were tried, by number."""

    reference: Figures | None
    reference_trial: Trial | None
    shown: Mapping[int, Shown]

    @property
    def best(self) -> Shown | None:
        """The best of those that came furthest: only they were measured side by side."""
        whole = [one for one in self.shown.values() if one.is_whole]
        furthest = max((one.highest_rung for one in whole), default=0)
        return max((one for one in whole if one.highest_rung == furthest), key=_by_score, default=None)

    @property
    def leader(self) -> Shown | None:
        """The best score so far, wherever it was measured."""
        return max((one for one in self.shown.values() if one.is_whole), key=_by_score, default=None)

    def pareto(self) -> list[Shown]:
        """Those that no other beats in both speed and memory, the fastest first."""
        known = [
            one for one in self.shown.values() if one.is_whole and one.figures and one.figures.peak_bytes
        ]
        front: list[Shown] = []
        for one in sorted(known, key=_by_speed):
            if not front or _memory(one) < _memory(front[-1]):
                front.append(one)
        return front


def stand(
    candidates: Sequence[Candidate],
    trials: Sequence[Trial],
    *,
    objective: Objective,
    clock: Clock,
    precision: str,
) -> Standing:
    """Where the trials put the candidates.

    Losses are compared with those of the reference: the first trial of the run's own layout, or of the first layout
    that trained where that one did not.
    """
    counting = [trial for trial in trials if trial.counts]
    reference = min(
        (trial for trial in counting if trial.ended and trial.ended.outcome == GOOD),
        key=lambda trial: (trial.candidate != 0, trial.number),
        default=None,
    )
    told = None if reference is None else _figures(candidates[reference.candidate], [reference], clock)
    shown = {}
    for number in dict.fromkeys(trial.candidate for trial in counting):
        own = [trial for trial in counting if trial.candidate == number]
        shown[number] = _shown(candidates[number], own, reference, told, objective, clock, precision)
    return Standing(reference=told, reference_trial=reference, shown=shown)


def _shown(
    candidate: Candidate,
    trials: Sequence[Trial],
    reference: Trial | None,
    told: Figures | None,
    objective: Objective,
    clock: Clock,
    precision: str,
) -> Shown:
    figures = _figures(candidate, trials, clock)
    refused = _refusal(trials, reference, precision)
    may_win = figures is not None and told is not None and refused is None
    return Shown(
        candidate=candidate,
        trials=trials,
        figures=figures,
        score=objective.score(figures, told) if may_win and figures and told else None,
        refused=refused,
    )


def _figures(candidate: Candidate, trials: Sequence[Trial], clock: Clock) -> Figures | None:
    measures = [trial.measure for trial in trials if trial.measure is not None]
    return None if not measures else figures_of(measures, candidate, clock)


def figures_of(measures: Sequence[Measure], candidate: Candidate, clock: Clock) -> Figures:
    """Medians over the timed steps of all of them."""
    steps = [each for measure in measures for each in measure.step_token_s(clock, candidate.devices)]
    peaks = [measure.peak_bytes for measure in measures if measure.peak_bytes is not None]
    return Figures(token_s=median(steps), peak_bytes=max(peaks, default=None), devices=candidate.devices)


def _refusal(trials: Sequence[Trial], reference: Trial | None, precision: str) -> str | None:
    for trial in trials:
        if trial.ended is not None and trial.ended.outcome not in (GOOD, SLOW):
            return f"{trial.ended.outcome}: {trial.ended.why}"
        theirs = reference.measure if reference else None
        if theirs is None or trial.measure is None or trial is reference:
            continue
        ours, compared = trial.measure.losses[:_COMPARED_STEPS], theirs.losses[:_COMPARED_STEPS]
        found = first_difference(compared, ours, precision)
        if found is not None:
            step, expected, loss = found
            return (
                f"other loss: step {step} has {_told(loss)}, the reference {_told(expected)} (tolerance "
                f"{LOSS_TOLERANCE[precision]:.1e} of it)"
            )
    return None


def _told(loss: float | None) -> str:
    return "n/a" if loss is None else f"{loss:.6f}"


def _by_score(one: Shown) -> tuple[float, int]:
    return one.score or 0.0, -one.candidate.number


def _by_speed(one: Shown) -> tuple[float, int]:
    assert one.figures is not None
    return one.figures.token_s, one.candidate.number


def _memory(one: Shown) -> float:
    assert one.figures is not None and one.figures.peak_bytes is not None
    return one.figures.peak_bytes
