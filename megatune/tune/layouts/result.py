"""What a tune has found: every trial, the winner, the Pareto front, and how well the planner had known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from megatune.plan.calibration import Constants
from megatune.tune.layouts.definition import Definition, read_definition, with_measured
from megatune.tune.layouts.halving import Done
from megatune.tune.layouts.journal import GOOD, Trial, TuneFolder, read_trials
from megatune.tune.layouts.standing import Shown, Standing


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """A tune as far as it has come."""

    folder: TuneFolder
    definition: Definition
    trials: Sequence[Trial]
    standing: Standing
    constants: Constants | None
    """The planner's, fitted to the trials."""
    planner_errors: Sequence[float]
    """Relative errors of the planner's steps with these, one a candidate that was measured."""
    is_done: bool

    @property
    def best(self) -> Shown | None:
        return self.standing.best

    @property
    def num_open(self) -> int:
        """Trials that run."""
        return sum(trial.ended is None for trial in self.trials)

    @property
    def good_runs(self) -> list[Path]:
        """The run folders of the trials that trained to their end."""
        good = [trial for trial in self.trials if trial.ended and trial.ended.outcome == GOOD]
        return [self.folder.trial(trial.number).path for trial in good]

    def as_object(self) -> dict[str, Any]:
        """For `--json`."""
        rules, best = self.definition.rules, self.best
        reference = self.standing.reference_trial
        return {
            "objective": dict(rules.objective.weights),
            "clock": rules.clock,
            "clock_why": rules.clock_why,
            "done": self.is_done,
            "open": self.num_open,
            "candidates": len(self.definition.space.candidates),
            "left_out": list(self.definition.space.left_out),
            "reference": None if reference is None else reference.candidate,
            "best": None if best is None else shown_object(best),
            "pareto": [one.candidate.number for one in self.standing.pareto()],
            "planner_error_median": median(map(abs, self.planner_errors)) if self.planner_errors else None,
            "results": [shown_object(one) for one in self.standing.shown.values()],
            "trials": [trial_object(trial, self.folder) for trial in self.trials],
        }


def read_tune(folder: TuneFolder) -> TuneResult | None:
    """The result out of the folder; None without a tune in it."""
    known = read_definition(folder)
    if known is None:
        return None
    definition = with_measured(known, folder)
    trials = read_trials(folder)
    forecaster = definition.forecaster(definition.tuned(folder))
    constants = forecaster.constants(trials)
    return TuneResult(
        folder=folder,
        definition=definition,
        trials=trials,
        standing=definition.standing(trials),
        constants=constants,
        planner_errors=forecaster.errors(trials, constants) if constants else [],
        is_done=isinstance(definition.next_trial(trials, forecaster), Done),
    )


def shown_object(one: Shown) -> dict[str, Any]:
    """A candidate's results as JSON values."""
    figures = one.figures
    return {
        "candidate": one.candidate.number,
        "layout": one.candidate.layout.to_json(),
        "values": one.candidate.values,
        "planned_step_seconds": one.candidate.planned_s,
        "planned_bytes": one.candidate.planned_bytes,
        "tokens_per_second": figures.tokens_per_second if figures else None,
        "tokens_per_gpu_hour": figures.tokens_per_gpu_hour if figures else None,
        "peak_bytes": figures.peak_bytes if figures else None,
        "score": one.score,
        "refused": one.refused,
        "trials": [trial.number for trial in one.trials],
    }


def trial_object(trial: Trial, folder: TuneFolder) -> dict[str, Any]:
    """A trial as JSON values."""
    ended = trial.ended
    return {
        "number": trial.number,
        "candidate": trial.candidate,
        "rung": trial.rung,
        "outcome": ended.outcome if ended else "running",
        "why": ended.why if ended else None,
        "seconds": ended.seconds if ended else None,
        "engine": ended.measure.engine if ended and ended.measure else None,
        "folder": str(folder.trial(trial.number).path),
    }
