"""Trains the waiting trials of a search, one after another. Several workers may share a search."""

import sys
import time
from typing import TYPE_CHECKING

from megatune.config import path_override
from megatune.errors import ConfigError
from megatune.launch.digest import digest_run
from megatune.launch.processes import STOPPED_BUT_SAVED
from megatune.launch.run_folder import RunFolder
from megatune.tune.owner import Mark, Watcher, marked
from megatune.tune.search.folder import SearchFolder
from megatune.tune.search.losses import Loss, LossWatch, losses_of
from megatune.tune.search.space import Point, overrides_of
from megatune.tune.search.study import (
    WHOLE_RUN,
    definition_of,
    draw_point,
    is_finite,
    open_study,
    pruner_of,
    put_back,
    take_trial,
    trials_in,
)
from megatune.tune.trial import StopSignals, TrialEnd, last_lines, run_trial

if TYPE_CHECKING:
    from optuna import Trial

FAILURE, SECONDS = "failure", "seconds"
_USER_ERROR = 2
_DIVERGED = "numeric"
_OF_ITS_VALUES = ("gpu_memory", "host_memory", _DIVERGED)
"""Classes of failures that say something about the values: the sampler learns from them."""
_LOOK_AGAIN_S = 1.0


class Worker:
    """Takes trials out of the journal of `folder` until none is left, or `stop` was asked for."""

    def __init__(self, folder: SearchFolder, stop: StopSignals) -> None:
        self._folder, self._stop = folder, stop
        self._study = open_study(folder.path)
        self._definition = definition_of(self._study)
        self._watcher = Watcher()

    def work(self) -> int:
        """Train trials. Returns 0 when none is left, 75 when stopped before that.

        Raises ConfigError when a trial is refused before any has ended well: then all would be.
        """
        waited = False
        while not self._stop.asked:
            trial = take_trial(self._study, self._definition)
            if trial is not None:
                if not self._train(trial):
                    return STOPPED_BUT_SAVED
                self._drop_checkpoints()
            elif running := trials_in(self._study, "RUNNING"):
                if not waited:
                    _tell(f"waiting for {len(running)} trial(s) of other workers")
                waited = True
                self._take_back_abandoned()
                time.sleep(_LOOK_AGAIN_S)
            else:
                return 0
        return STOPPED_BUT_SAVED

    def _train(self, trial: "Trial") -> bool:
        """Train one trial and enter its end. False when it was stopped, and waits again."""
        number = trial.number
        self._study.pruner = pruner_of(self._definition, len(trials_in(self._study)))
        point = draw_point(trial, self._definition)
        run = self._folder.create_trial(number)
        _tell(f"trial {number}: {' '.join(overrides_of(point))}")
        watch = _Pruning(trial, run)
        with marked(run.path) as mark:
            end = run_trial(
                [str(self._folder.run_file), *trial_overrides(run, point)],
                log=self._folder.trial_log(number),
                watch=lambda: _look(mark, watch),
                stop=self._stop,
            )
            watch.look()
            return self._enter(trial, run, end, watch)

    def _enter(self, trial: "Trial", run: RunFolder, end: TrialEnd, watch: "_Pruning") -> bool:
        spent_s = trial.user_attrs.get(SECONDS, 0.0) + end.seconds
        trial.set_user_attr(SECONDS, spent_s)
        losses = losses_of(run.metrics)
        last = losses[-1].loss if losses else None
        if watch.diverged or (end.exit_code == 0 and not is_finite(last)):
            self._fail(trial, _DIVERGED, "the validation loss is not a finite number")
        elif end.exit_code == 0:
            self._study.tell(trial, last)
            _tell(f"trial {trial.number}: validation loss {last:.4f} ({end.seconds:.0f} s)")
        elif end.ended_by == "watch":
            self._tell_pruned(trial)
            _tell(f"trial {trial.number}: pruned after {losses[-1].percent} % ({end.seconds:.0f} s)")
        elif end.ended_by == "stop" or end.exit_code == STOPPED_BUT_SAVED:
            put_back(self._study, trial)
            _tell(f"trial {trial.number}: stopped and saved; it goes on when the search does")
            return False
        else:
            self._enter_failure(trial, run, end)
        return True

    def _enter_failure(self, trial: "Trial", run: RunFolder, end: TrialEnd) -> None:
        log = self._folder.trial_log(trial.number)
        if end.exit_code == _USER_ERROR:
            words = last_lines(log)
            if not trials_in(self._study, "COMPLETE", "PRUNED"):
                put_back(self._study, trial)
                raise ConfigError([f"trial {trial.number} was refused:\n{words}"], source="megatune search")
            self._fail(trial, "config", words)
            return
        found = digest_run(run)
        self._fail(trial, found.cause.name, found.summary)

    def _fail(self, trial: "Trial", name: str, summary: str) -> None:
        from optuna.trial import TrialState

        trial.set_user_attr(FAILURE, {"class": name, "summary": summary})
        if name in _OF_ITS_VALUES:
            self._tell_pruned(trial)
        else:
            self._study.tell(trial, state=TrialState.FAIL)
        _tell(f"trial {trial.number} failed ({name}): {summary}")

    def _tell_pruned(self, trial: "Trial") -> None:
        from optuna.trial import TrialState

        self._study.tell(trial, state=TrialState.PRUNED)

    def _drop_checkpoints(self) -> None:
        """Keep the checkpoints of the best trial alone: each holds the whole state of a run."""
        done = trials_in(self._study, "COMPLETE")
        best = self._study.best_trial.number if done else None
        for trial in trials_in(self._study, "COMPLETE", "PRUNED", "FAIL"):
            if trial.number != best:
                self._folder.drop_checkpoints(trial.number)

    def _take_back_abandoned(self) -> None:
        for trial in trials_in(self._study, "RUNNING"):
            if self._watcher.is_abandoned(self._folder.trial(trial.number).path):
                _tell(f"trial {trial.number} was left by its worker; it is taken up again")
                put_back(self._study, trial)


class _Pruning:
    """Enters the losses of a running trial, and asks the pruner."""

    def __init__(self, trial: "Trial", run: RunFolder) -> None:
        self._trial, self._losses = trial, LossWatch(run.metrics)
        self._entered: set[int] = set(trial.storage.get_trial(trial._trial_id).intermediate_values)
        self.diverged = False

    def look(self) -> bool:
        """Whether the trial is to end."""
        is_hopeless = False
        for loss in self._losses.losses():
            self.diverged |= not is_finite(loss.loss)
            is_hopeless |= self._enter(loss)
        return self.diverged or is_hopeless

    def _enter(self, loss: Loss) -> bool:
        # The last one is the trial's result, and there is nothing left to save by pruning.
        if loss.loss is None or loss.percent >= WHOLE_RUN or loss.percent in self._entered:
            return False
        self._entered.add(loss.percent)
        self._trial.report(loss.loss, loss.percent)
        return bool(self._trial.should_prune())


def trial_overrides(run: RunFolder, point: Point) -> list[str]:
    """All that is put behind the search's run file for a trial."""
    return [
        *overrides_of(point),
        path_override("train.output_dir", run.path),
        "checkpoint.resume=auto",
        "checkpoint.export_at_end=false",
    ]


def _look(mark: Mark, pruning: _Pruning) -> bool:
    mark.move()
    return pruning.look()


def _tell(text: str) -> None:
    print(f"megatune: {text}", file=sys.stderr, flush=True)
