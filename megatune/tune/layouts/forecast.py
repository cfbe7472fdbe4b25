"""What a candidate will take: the planner's word, its constants fitted to the trials so far, and what is left over.

Two steps. The planner's two constants (speed of computation, host time of a gather) are fitted to the measured
trials as `megatune plan --calibrate` does. What remains between prediction and measurement is learnt as a factor
for each value of each knob: a Bayesian linear regression of the logarithm (Bishop 2006, section 3.3), whose prior
says that the planner is right within some tens of percent. So an untried candidate has a prediction with a width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from megatune.plan.assess import Question, timed
from megatune.plan.calibration import Constants, fit_constants
from megatune.plan.layout import Layout
from megatune.plan.rates import slowed
from megatune.tune.layouts.knobs import BY_KEY

_NOISE = 0.05
"""Relative width of one trial's median."""
_SCALE = 3.0
"""Of the factor that all candidates share: machines that nobody has measured may be twenty times off."""
_VALUE, _SIDE_VALUE = 0.2, 0.1
"""Of the factor of one value of a knob: of a layout, and of any other one, which matter less."""
_DOUBLING = 0.3
"""Of the factor of each doubling of a knob that is a number."""
ACCUMULATION = "accumulation"
"""Passes of a step: what each of them costs beside its tokens is the same at every degree."""
_PLAIN = Constants(compute_factor=1.0, gather_overhead_s=1e-4)

Vector = npt.NDArray[np.float64]


def planned_seconds(question: Question, layout: Layout, constants: Constants | None = None) -> float | None:
    """Seconds a step by the planner; None where nothing is known about the device.

    Without `constants` they are those of the plan; on CPUs that nobody has measured, relative ones.
    """
    known = question.rates() if constants is None else None
    rates = known or question.rates_to_fit()
    if rates is None:
        return None
    return timed(question, layout, rates if constants is None else slowed(rates, constants)).total_s


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A prediction: the middle, and the relative width of one standard deviation."""

    value: float
    width: float

    def low(self, widths: float) -> float:
        """So many widths below the middle."""
        return self.value * math.exp(-widths * self.width)


def fitted(cases: Sequence[tuple[Question, Layout]], measured_s: Sequence[float]) -> Constants | None:
    """The planner's constants that fit the measured steps best; None where it knows no times."""
    if not cases or any(planned_seconds(*case, _PLAIN) is None for case in cases):
        return None

    def predict(constants: Constants) -> list[float]:
        return [planned_seconds(*case, constants) or 0.0 for case in cases]

    factor = float(np.median(np.divide(measured_s, predict(replace(_PLAIN, gather_overhead_s=0.0)))))
    return fit_constants(predict, measured_s, replace(_PLAIN, compute_factor=factor))


class Leftover:
    """What the planner does not know, learnt from its errors."""

    def __init__(
        self,
        varied: Mapping[str, Sequence[str]],
        points: Sequence[Mapping[str, str]],
        planned: Sequence[float],
        measured: Sequence[float],
    ) -> None:
        """`varied`: values of each knob. The rest, one entry a trial: its values, what was expected, what was found."""
        self._varied = varied
        prior = np.array([1.0, *(width for key in varied for width in self._widths(key))])
        prior[0] = _SCALE
        rows = np.array([self._row(point) for point in points]).reshape(len(points), len(prior))
        errors = np.log(np.divide(measured, planned)) if points else np.zeros(0)
        precision = np.diag(1 / prior**2) + rows.T @ rows / _NOISE**2
        self._covariance: Vector = np.linalg.inv(precision)
        self._mean: Vector = self._covariance @ rows.T @ errors / _NOISE**2

    def expected(self, point: Mapping[str, str], planned: float) -> Expected:
        """What a candidate will take, given what the planner says."""
        row = self._row(point)
        return Expected(
            value=planned * math.exp(float(row @ self._mean)),
            width=math.sqrt(float(row @ self._covariance @ row)),
        )

    def _widths(self, key: str) -> list[float]:
        if key == ACCUMULATION:
            return [_DOUBLING]
        width = _VALUE if BY_KEY[key].in_layout else _SIDE_VALUE
        return [width] * len(self._varied[key]) + [_DOUBLING] * _are_numbers(self._varied[key])

    def _row(self, point: Mapping[str, str]) -> Vector:
        row = [1.0]
        for key, values in self._varied.items():
            if key != ACCUMULATION:
                row += [float(point[key] == value) for value in values]
            if _are_numbers(values) or key == ACCUMULATION:
                row.append(math.log2(float(point[key])))
        return np.array(row)


def _are_numbers(values: Sequence[str]) -> bool:
    return all(value.isdecimal() and int(value) > 0 for value in values)
