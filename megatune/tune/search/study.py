"""The journal of a search: its trials and what became of them, in one file that many jobs may share.

The file is optuna's journal, under a lock made by linking a file, which holds on NFS too. All trials are
entered as waiting when the search is set up; a worker that takes one marks it as running, a stopped worker puts
it back. Everything here imports optuna inside functions: `megatune --help` does without.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatune.errors import ConfigError, MegatuneError
from megatune.tune.search.space import Choices, Point, Range, Space

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "hyperband")
WHOLE_RUN = 100
"""Intermediate losses are entered at the share of the run, in percent, so that runs of any length compare."""

_NAME = "search"
_DEFINITION = "definition"
_MIN_STARTUP, _MAX_STARTUP = 3, 10
_LARGE = 1_000_003


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What makes a search: two with different ones are two searches."""

    space: Space
    sampler: str
    pruner: str
    seed: int
    run: str
    """The resolved run file without its comments."""

    def as_object(self) -> dict[str, Any]:
        return {
            "space": self.space.as_object(),
            "sampler": self.sampler,
            "pruner": self.pruner,
            "seed": self.seed,
            "run": self.run,
        }


def journal_path(folder: Path) -> Path:
    return folder / "journal.log"


def open_study(folder: Path, *, create: bool = False) -> "Study":
    """The study in a search folder. Raises ConfigError when there is none, MegatuneError for a broken journal."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = journal_path(folder)
    if not create and not path.is_file():
        raise ConfigError(
            [f"there is no search in {folder}: it has no {path.name}."], source="megatune search"
        )
    try:
        backend = JournalFileBackend(str(path), lock_obj=JournalFileSymlinkLock(str(path)))
        storage = JournalStorage(backend)
        return optuna.create_study(
            storage=storage, study_name=_NAME, direction="minimize", load_if_exists=True
        )
    except (ValueError, KeyError, OSError) as error:
        raise MegatuneError(f"{path} cannot be read as a journal: {error!r}.") from error


def set_up(study: "Study", definition: Definition, num_trials: int) -> None:
    """Enter what the search is and its waiting trials; those that are there stay.

    Raises ConfigError when the journal holds a search that is another one.
    """
    known = study.user_attrs.get(_DEFINITION)
    asked = definition.as_object()
    if known is None:
        study.set_user_attr(_DEFINITION, asked)
    elif known != asked:
        changed = ", ".join(key for key, value in asked.items() if known.get(key) != value)
        raise ConfigError(
            [
                f"the folder holds a search that differs in: {changed}. Go on with the same values, choose another "
                "train.output_dir, or delete the folder."
            ],
            source="megatune search",
        )
    points: list[Point | None] = [*definition.space.grid()] if definition.sampler == "grid" else []
    points = points or [None] * num_trials
    for point in points[len(study.get_trials(deepcopy=False)) :]:
        study.enqueue_trial(_params(definition.space, point) if point else {})


def definition_of(study: "Study") -> Definition:
    """What `set_up` has entered."""
    known: Mapping[str, Any] | None = study.user_attrs.get(_DEFINITION)
    if known is None:
        raise ConfigError(
            ["the search was cut off before it was written down: start it again with --space"],
            source="megatune search",
        )
    return Definition(**{**known, "space": Space.from_object(known["space"])})


def trials_in(study: "Study", *states: str) -> "list[FrozenTrial]":
    """The trials whose state is one of optuna's `states` (all without any), in their order."""
    from optuna.trial import TrialState

    wanted = tuple(TrialState[state] for state in states) or None
    return study.get_trials(deepcopy=False, states=wanted)


def take_trial(study: "Study", definition: Definition) -> "Trial | None":
    """Take the first waiting trial, or None without any. Of several workers one gets it."""
    import optuna
    from optuna.trial import TrialState

    for waiting in trials_in(study, "WAITING"):
        if study._storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING):
            study.sampler = _sampler(definition, waiting.number, len(trials_in(study)))
            return optuna.Trial(study, waiting._trial_id)
    return None


def put_back(study: "Study", trial: "FrozenTrial | Trial") -> None:
    """Let a running trial wait again, with its values: whoever takes it goes on with its folder."""
    from optuna.trial import TrialState

    study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def draw_point(trial: "Trial", definition: Definition) -> Point:
    """The values of a trial that was taken: those it has, or new ones."""
    return {axis.key: _draw(trial, axis) for axis in definition.space.axes}


def point_of(trial: "FrozenTrial", space: Space) -> Point:
    """The values of a trial as texts of overrides; empty while it waits for its turn."""
    return {axis.key: _text(axis, trial.params[axis.key]) for axis in space.axes if axis.key in trial.params}


def pruner_of(definition: Definition, num_trials: int) -> "BasePruner":
    """The pruner, for losses that are entered in percent of the run."""
    from optuna import pruners

    if definition.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=num_startup_trials(num_trials))
    if definition.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=10, max_resource=WHOLE_RUN, reduction_factor=3)
    return pruners.NopPruner()


def num_startup_trials(num_trials: int) -> int:
    """Trials before the model, or the median, is believed: a quarter, but from 3 to 10."""
    return min(_MAX_STARTUP, max(_MIN_STARTUP, num_trials // 4))


def _sampler(definition: Definition, number: int, num_trials: int) -> "BaseSampler":
    """A sampler of its own for each trial: a search that was interrupted draws what it would have drawn."""
    from optuna import samplers

    seed = (definition.seed * _LARGE + number) % 2**32
    if definition.sampler == "tpe":
        startup = num_startup_trials(num_trials)
        # Of values that others are trying, half of what is known so far: they are not tried twice.
        return samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)
    return samplers.RandomSampler(seed=seed)


def _draw(trial: "Trial", axis: Choices | Range) -> str:
    if isinstance(axis, Choices):
        return str(trial.suggest_categorical(axis.key, axis.values))
    points = axis.points()
    high = axis.high if points is None else float(points[-1])
    if axis.whole:
        low, step = int(axis.low), int(axis.step or 1)
        return axis.text(trial.suggest_int(axis.key, low, int(high), step=step, log=axis.log))
    return axis.text(trial.suggest_float(axis.key, axis.low, high, step=axis.step, log=axis.log))


def _text(axis: Choices | Range, value: Any) -> str:
    return str(value) if isinstance(axis, Choices) else axis.text(value)


def _params(space: Space, point: Point) -> dict[str, Any]:
    return {
        axis.key: point[axis.key] if isinstance(axis, Choices) else _number(axis, point[axis.key])
        for axis in space.axes
    }


def _number(axis: Range, text: str) -> float:
    return int(text) if axis.whole else float(text)


def is_finite(value: float | None) -> bool:
    """Whether it can be a loss."""
    return value is not None and math.isfinite(value)
