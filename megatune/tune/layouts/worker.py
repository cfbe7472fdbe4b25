"""Makes trials until none is left. Several workers may share a tune."""

import sys
import time
from collections.abc import Sequence

from megatune.errors import ConfigError
from megatune.launch.processes import STOPPED_BUT_SAVED
from megatune.tune.layouts.definition import Definition, read_definition, with_measured
from megatune.tune.layouts.halving import Done, Next, Wait
from megatune.tune.layouts.journal import INTERRUPTED, Ended, Trial, TuneFolder, enter, read_trials, take
from megatune.tune.layouts.making import Maker
from megatune.tune.owner import Watcher, marked
from megatune.tune.trial import StopSignals

_LOOK_AGAIN_S = 1.0


class Worker:
    """Takes trials of the tune in `folder` until none is left, or `stop` was asked for."""

    def __init__(self, folder: TuneFolder, stop: StopSignals, definition: Definition | None = None) -> None:
        known = definition or read_definition(folder)
        if known is None:
            raise ConfigError([f"there is no tune in {folder.path}."], source="megatune tune")
        self._folder, self._stop = folder, stop
        self._definition = with_measured(known, folder)
        self._maker = Maker(folder, self._definition, stop)
        self._forecaster = self._definition.forecaster(self._definition.tuned(folder))
        self._watcher = Watcher()

    def work(self) -> int:
        """Make trials. Returns 0 when none is left, 75 when stopped before that.

        Raises ConfigError when the run's own layout is refused: then the run file is wrong, and DataError when
        the data is.
        """
        waited = False
        self._maker.ready()
        while not self._stop.asked:
            trials = read_trials(self._folder)
            if self._take_back_abandoned(trials):
                continue
            step = self._definition.next_trial(trials, self._forecaster)
            if isinstance(step, Done):
                _tell(step.why)
                return 0
            if isinstance(step, Wait):
                if not waited:
                    _tell(f"waiting for {len(step.open_trials)} trial(s) of other workers")
                waited = True
                time.sleep(_LOOK_AGAIN_S)
                continue
            number = 1 + max((trial.number for trial in trials), default=-1)
            if self._make(step, number) == INTERRUPTED:
                return STOPPED_BUT_SAVED
        return STOPPED_BUT_SAVED

    def _make(self, step: Next, number: int) -> str | None:
        """Make trial `number`; None when another worker took the number first. Returns its outcome."""
        taken = take(self._folder, number, candidate=step.candidate, rung=step.rung, steps=step.steps)
        if not taken:
            return None
        space, run = self._definition.space, self._folder.trial(number)
        _tell(f"trial {number}: {space.describe(space.candidates[step.candidate])} ({step.why})")
        with marked(run.path) as mark:
            try:
                standing = self._definition.standing(read_trials(self._folder))
                ended = self._maker.make(step, number, standing, mark)
            except BaseException as error:
                enter(self._folder, number, _given_up(str(error)))
                raise
            enter(self._folder, number, ended)
        _tell(f"trial {number}: {_told(ended)} ({ended.seconds:.0f} s)")
        return ended.outcome

    def _take_back_abandoned(self, trials: Sequence[Trial]) -> bool:
        """Enter that trials whose worker is gone do not count. Whether there were any."""
        gone = [
            trial
            for trial in trials
            if trial.ended is None and self._watcher.is_abandoned(self._folder.trial(trial.number).path)
        ]
        for trial in gone:
            _tell(f"trial {trial.number} was left by its worker; it does not count")
            enter(self._folder, trial.number, _given_up("left by its worker"))
        return bool(gone)


def _given_up(why: str) -> Ended:
    return Ended(outcome=INTERRUPTED, why=why, seconds=0.0, measure=None)


def _told(ended: Ended) -> str:
    return ended.outcome if ended.why is None else f"{ended.outcome}: {ended.why.splitlines()[0]}"


def _tell(text: str) -> None:
    print(f"megatune: {text}", file=sys.stderr, flush=True)
