"""What a search has found: its trials, the best of them, and which key mattered."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatune.config.document import read_value
from megatune.tune.search.folder import SearchFolder
from megatune.tune.search.space import Point, Space
from megatune.tune.search.study import Definition, definition_of, point_of, trials_in
from megatune.tune.search.worker import FAILURE, SECONDS

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_MIN_FOR_IMPORTANCE = 10
"""Below that, PED-ANOVA's densities rest on one or two good trials."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One trial as far as it has come."""

    number: int
    state: str
    """waiting, running, done, pruned or failed."""
    loss: float | None
    """Validation loss after the last step, in nats a target token; None without one."""
    point: Point
    folder: str
    seconds: float | None
    failure: Mapping[str, str] | None
    losses: Mapping[int, float]
    """On the way: percent of the run -> validation loss."""

    def as_object(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "number": self.number,
            "state": self.state,
            "loss": self.loss,
            "values": values_of(self.point),
            "folder": self.folder,
            "seconds": self.seconds,
            "failure": None if self.failure is None else dict(self.failure),
            "losses": {str(percent): loss for percent, loss in sorted(self.losses.items())},
        }


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The search as far as it has come."""

    definition: Definition
    trials: tuple[TrialResult, ...]
    best: TrialResult | None
    importance: Mapping[str, float] | None
    """Key -> share of what makes a trial one of the good ones; None when too few trials are done."""

    @property
    def num_open(self) -> int:
        """Trials that wait or run."""
        return sum(trial.state in ("waiting", "running") for trial in self.trials)

    def as_object(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "sampler": self.definition.sampler,
            "pruner": self.definition.pruner,
            "seed": self.definition.seed,
            "trials": [trial.as_object() for trial in self.trials],
            "open": self.num_open,
            "best": self.best.as_object() if self.best else None,
            "importance": None if self.importance is None else dict(self.importance),
        }


def read_result(study: "Study", folder: SearchFolder) -> SearchResult:
    """The result out of the journal."""
    definition = definition_of(study)
    trials = tuple(_trial(trial, definition.space, folder) for trial in trials_in(study))
    done = [trial for trial in trials if trial.state == "done"]
    return SearchResult(
        definition=definition,
        trials=trials,
        best=min(done, key=lambda trial: (trial.loss, trial.number), default=None),
        importance=_importance(study, definition.space) if len(done) >= _MIN_FOR_IMPORTANCE else None,
    )


def values_of(point: Point) -> dict[str, Any]:
    """A point as plain values."""
    return {key: read_value(text, source=key) for key, text in point.items()}


def _trial(trial: "FrozenTrial", space: Space, folder: SearchFolder) -> TrialResult:
    failure = trial.user_attrs.get(FAILURE)
    return TrialResult(
        number=trial.number,
        state="failed" if failure else _STATES[trial.state.name],
        loss=trial.value if trial.state.name == "COMPLETE" else None,
        point=point_of(trial, space),
        folder=str(folder.trial(trial.number).path),
        seconds=trial.user_attrs.get(SECONDS),
        failure=failure,
        losses=trial.intermediate_values,
    )


_STATES = {
    "WAITING": "waiting",
    "RUNNING": "running",
    "COMPLETE": "done",
    "PRUNED": "pruned",
    "FAIL": "failed",
}


def _importance(study: "Study", space: Space) -> dict[str, float]:
    """PED-ANOVA (Watanabe et al., arXiv:2304.10255), as optuna computes it; the shares add up to 1."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that shares are equal where all trials are
        return dict(
            get_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(), params=[axis.key for axis in space.axes]
            )
        )
