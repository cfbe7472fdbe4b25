"""Bootstrap intervals of metrics that are functions of sums over rows (Efron, 1979)."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from megatune.tasks.scores import Interval

Numbers = npt.NDArray[np.float64]
NUM_SAMPLES = 1000
_SEED = 12345
_DRAWN_AT_ONCE = 2**22
_MOST_DRAWN = 2**13
"""More rows are drawn in groups: a run that evaluates 100,000 rows would wait five seconds each time."""


def bootstrap(statistics: Numbers, metrics: Callable[[Numbers], dict[str, Numbers]]) -> dict[str, Interval]:
    """95 % percentile intervals from 1000 samples of the rows with replacement; the same at every call.

    statistics: (rows, k), what each row adds. metrics: (samples, k) sums -> name -> (samples,) values.
    No intervals for fewer than two rows. Many rows are put into groups, at random, and those are drawn.
    """
    if len(statistics) < 2:
        return {}
    draw = np.random.default_rng(_SEED)
    if len(statistics) > _MOST_DRAWN:
        starts = np.arange(_MOST_DRAWN) * len(statistics) // _MOST_DRAWN
        statistics = np.add.reduceat(statistics[draw.permutation(len(statistics))], starts)
    num_rows = len(statistics)
    at_once = max(1, _DRAWN_AT_ONCE // num_rows)
    sums = []
    for start in range(0, NUM_SAMPLES, at_once):
        counts = draw.multinomial(
            num_rows, np.full(num_rows, 1 / num_rows), size=min(at_once, NUM_SAMPLES - start)
        )
        sums.append(counts @ statistics)
    values = metrics(np.concatenate(sums))
    return {name: _middle(found) for name, found in values.items()}


def f1_of(hits: Numbers, answered: Numbers, wanted: Numbers) -> Numbers:
    """F1 from counts of right, given and wanted answers; 0 where there are neither."""
    both = answered + wanted
    return np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)


def share_of(part: Numbers, whole: Numbers) -> Numbers:
    """part / whole; 0 where there is no whole."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _middle(values: Numbers) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
