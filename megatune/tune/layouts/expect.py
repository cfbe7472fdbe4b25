"""The forecast of all candidates, out of the planner and the trials so far."""

from collections.abc import Sequence

from megatune.plan.assess import Question
from megatune.plan.calibration import Constants, relative_errors
from megatune.plan.layout import Layout
from megatune.plan.layout_keys import LAYOUT_KEYS
from megatune.tune.layouts.candidates import Candidate, Space, Tuned
from megatune.tune.layouts.forecast import ACCUMULATION, Leftover, fitted, planned_seconds
from megatune.tune.layouts.halving import Forecast
from megatune.tune.layouts.journal import Trial
from megatune.tune.layouts.measure import Clock
from megatune.tune.layouts.standing import figures_of

_MICRO = "train.per_device_train_batch_size"


class Forecaster:
    """Asks the planner once for each setting of the knobs that are no part of a layout."""

    def __init__(self, tuned: Tuned, space: Space, clock: Clock) -> None:
        self._tuned, self._space, self._clock = tuned, space, clock
        self._questions: dict[tuple[tuple[str, str], ...], Question] = {}

    def _point(self, one: Candidate) -> dict[str, str]:
        """The values that a factor is learnt for: accumulation in place of the micro-batch it follows from."""
        values = {key: text for key, text in one.values.items() if key != _MICRO}
        return {**values, ACCUMULATION: str(one.layout.accumulation)}

    def _varied(self) -> dict[str, list[str]]:
        found = {key: list(values) for key, values in self._space.varied.items() if key != _MICRO}
        passes = dict.fromkeys(str(one.layout.accumulation) for one in self._space.candidates)
        return {**found, ACCUMULATION: list(passes)}

    def forecast(self, trials: Sequence[Trial]) -> Forecast:
        """Seconds a token and bytes of every candidate, as far as `trials` and the planner know."""
        measured = self._measured(trials)
        tokens = self._tokens_a_step(trials)
        constants = self.constants(trials)
        points = [self._point(self._space.candidates[number]) for number in measured]
        planned = {one.number: self._planned(one, constants) / tokens for one in self._space.candidates}
        seconds = Leftover(
            self._varied(),
            points,
            [planned[number] for number in measured],
            [token_s for token_s, _ in measured.values()],
        )
        weighed = {number: peak for number, (_, peak) in measured.items() if peak is not None}
        memory = Leftover(
            self._varied(),
            [self._point(self._space.candidates[number]) for number in weighed],
            [self._space.candidates[number].planned_bytes for number in weighed],
            list(weighed.values()),
        )
        return {
            one.number: (
                seconds.expected(self._point(one), planned[one.number]),
                memory.expected(self._point(one), one.planned_bytes),
            )
            for one in self._space.candidates
        }

    def constants(self, trials: Sequence[Trial]) -> Constants | None:
        """The planner's constants that fit the trials best; None without trials, or where it knows no times."""
        measured, tokens = self._measured(trials), self._tokens_a_step(trials)
        cases = [self._case(self._space.candidates[number]) for number in measured]
        return fitted(cases, [token_s * tokens for token_s, _ in measured.values()])

    def errors(self, trials: Sequence[Trial], constants: Constants | None) -> list[float]:
        """Relative errors of the planner's steps, with such constants, against what was measured."""
        measured, tokens = self._measured(trials), self._tokens_a_step(trials)
        found = [
            (planned_seconds(*self._case(self._space.candidates[number]), constants), token_s * tokens)
            for number, (token_s, _) in measured.items()
        ]
        known = [(planned, seconds) for planned, seconds in found if planned is not None]
        return relative_errors([planned for planned, _ in known], [seconds for _, seconds in known])

    def _measured(self, trials: Sequence[Trial]) -> dict[int, tuple[float, float | None]]:
        """Candidate -> seconds a token, and bytes."""
        found = {}
        for number in dict.fromkeys(trial.candidate for trial in trials):
            measures = [t.measure for t in trials if t.candidate == number and t.measure is not None]
            if measures:
                figures = figures_of(measures, self._space.candidates[number], self._clock)
                found[number] = figures.token_s, figures.peak_bytes
        return found

    def _tokens_a_step(self, trials: Sequence[Trial]) -> float:
        """Of the rows as they are: packing does not fill them quite."""
        counts = [count for trial in trials if trial.measure for count in trial.measure.tokens]
        if counts:
            return sum(counts) / len(counts)
        own = self._space.candidates[0]
        return float(own.layout.global_sequences * self._question(own).work.seq)

    def _planned(self, one: Candidate, constants: Constants | None) -> float:
        """Where the planner knows no times, all are alike to it."""
        return planned_seconds(*self._case(one), constants) or 1.0

    def _case(self, one: Candidate) -> tuple[Question, Layout]:
        return self._question(one), one.layout

    def _question(self, one: Candidate) -> Question:
        sides = {key: text for key, text in one.values.items() if key not in LAYOUT_KEYS}
        key = tuple(sides.items())
        if key not in self._questions:
            self._questions[key] = self._tuned.question(sides)
        return self._questions[key]
