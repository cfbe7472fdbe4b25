"""The checkpoints of one start: what it goes on from, what it saves, what it goes back to."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from megatune.checkpoint.folders import prune, remove_unfinished, set_aside_newer, write_hint
from megatune.checkpoint.manifest import why_incomplete
from megatune.checkpoint.read import (
    Found,
    find_checkpoint,
    layout_of,
    open_checkpoint,
    open_state,
    restore_generators,
)
from megatune.checkpoint.weights_index import describe_weights
from megatune.checkpoint.write import Shared
from megatune.config import BatchShape, Run
from megatune.data.prepared import PreparedSet
from megatune.engine.base import TrainingEngine
from megatune.errors import CheckpointError
from megatune.launch.checkpoints import finished, folder_name
from megatune.launch.ranks import own_start_names
from megatune.launch.run_folder import RunFolder
from megatune.report.records import ResumeRecord
from megatune.tasks.scores import greater_is_better
from megatune.train.identity import identity_hash, refuse_another_run, run_identity
from megatune.train.model_folder import write_folder
from megatune.train.reporting import Reporter
from megatune.train.saves import Saves
from megatune.train.state import TrainingState
from megatune.train.stopping import Patience, Stopping
from megatune.units import format_bytes


def patience_of(run: Run, asked: str | None) -> Patience:
    """The rules by which the run file tells a better evaluation, and when it has waited long enough for one.

    asked: the hash of what is evaluated, see `Evaluations.asked`.
    """
    evaluate = run.evaluate
    metric, greater = evaluate.metric_for_best_model, evaluate.greater_is_better
    return Patience(
        evaluate.early_stopping_patience,
        metric=metric,
        greater_is_better=greater_is_better(metric) if greater is None else greater,
        min_delta=evaluate.early_stopping_min_delta,
        asked=asked,
    )


class Checkpoints:
    """Loads and saves the engine and what all ranks share. Every method is collective."""

    def __init__(
        self,
        run: Run,
        engine: TrainingEngine,
        batch: BatchShape,
        train: PreparedSet,
        *,
        patience: Patience,
        folder: RunFolder,
        reporter: Reporter,
        stopping: Stopping,
        beat: Callable[[], None],
    ) -> None:
        """beat: told while training waits for a save whose bytes still go out."""
        self._run, self._engine, self._batch, self._train = run, engine, batch, train
        self._folder, self._reporter = folder, reporter
        self._patience = patience
        self._identity: dict[str, str] = {}
        self.begins_here = True
        """Whether this start goes on from no checkpoint of this run's folder."""
        self.saves = Saves(
            run,
            engine,
            reporter,
            stopping,
            checkpoints=folder.checkpoints,
            describe=self._shared,
            tend=self._tend,
            beat=beat,
        )

    @property
    def last(self) -> Path | None:
        """The folder of the newest checkpoint this start has saved or gone on from."""
        step = self.saves.saved_at
        return None if step is None else self._folder.checkpoints / folder_name(step)

    def is_saved(self, state: TrainingState) -> bool:
        """Whether the newest checkpoint is of the step of `state`."""
        return self.saves.saved_at == state.step

    def resume(self, state: TrainingState) -> TrainingState:
        """The state of the checkpoint that the run asks for, loaded into the engine; else `state`."""
        world, checkpoints = self._engine.world, self._folder.checkpoints
        world.first_rank(lambda: _discard(remove_unfinished(checkpoints)))
        self._identity = world.first_rank(
            lambda: run_identity(self._run, self._engine.built, self._batch, self._train)
        )
        started, asked = time.monotonic(), self._asked()
        found, passed_over = find_checkpoint(checkpoints, asked, world)
        for reason in passed_over:
            self._reporter.note(f"passed over {reason}")
        bytes_by_rank: list[int] = []
        if found is not None:
            self._refuse_another_run(found)
            state, bytes_by_rank = self._load(found)
        seconds = time.monotonic() - started
        self.begins_here = found is None or not self._is_own(found.folder, state.step)
        state = self._after_clearing_the_way(found, state, asked)
        if found is not None:
            if not self.begins_here:
                self.tend(state)  # a kill may have left more than the limit
            self.saves.learn_speed()
            self._tell_resumed(state, found, passed_over, seconds, bytes_by_rank)
        return state

    def go_back(self, bad: TrainingState) -> TrainingState | None:
        """The state of the newest good checkpoint, loaded, at the data behind `bad`; None without one.

        The checkpoint is the last one this start knows, or an older one if that is damaged. A save in
        flight is finished before.
        """
        world = self._engine.world
        self.saves.finish(bad)
        if self.saves.saved_at is None:
            return None
        found, _ = find_checkpoint(self._folder.checkpoints, "auto", world)
        if found is None:
            return None
        state, _ = self._load(found)
        world.first_rank(lambda: _discard(self._clear_the_way(found.folder, state, state.step)))
        keep_evaluation = state.evaluated_at == state.step
        self._reporter.cut_back(state.step, keep_evaluation=keep_evaluation)
        return replace(state, position=bad.position, rollbacks=bad.rollbacks + 1)

    def load_best(self, state: TrainingState) -> TrainingState | None:
        """The state of the best checkpoint, its weights loaded into the engine; None without one.

        It is of this run, whatever was changed since. Raises CheckpointError when it is damaged.
        """
        best = self._best(state)
        if best is None or state.best_step == state.step:
            return None
        try:
            found, problems = open_checkpoint(best, self._engine.world)
        except CheckpointError as error:
            found, problems = None, [str(error)]
        if found is None:
            raise CheckpointError(
                f"evaluate.load_best_model_at_end: training is done, and its best checkpoint, that of step "
                f"{state.best_step}, is damaged: {' '.join(problems)} Restore {best} from a copy, or take the model "
                "of the last step with evaluate.load_best_model_at_end=false; then start the run once more: no step "
                "is trained again."
            )
        loaded, _ = self._load(found)
        return loaded

    def tend(self, state: TrainingState) -> None:
        """Point at the newest and the best checkpoint, and let go of others."""
        remark = self._engine.world.first_rank(lambda: self._tend(state))
        if remark:
            self._reporter.note(f"WARNING, {remark}")

    def _tend(self, state: TrainingState) -> str | None:
        """First rank, once the checkpoint of `state` stands. What it has to remark: a disk that refused."""
        newest, best = self._folder.checkpoints / folder_name(state.step), self._best(state)
        try:
            write_hint(self._folder.path / "latest", newest)
            write_hint(self._folder.path / "best", best)
            keep = self._run.checkpoint.save_total_limit
            if keep:
                protected = {folder for folder in (newest, best) if folder is not None}
                prune(self._folder.checkpoints, keep, protected=protected)
        except OSError as error:
            return f"{newest} is saved, but its hints were not written or older ones not removed: {error}"
        return None

    def _asked(self) -> str:
        """Where to begin: as the run file says, unless an earlier start has done so and saved since. Collective."""
        asked, checkpoints = self._run.checkpoint.resume, self._folder.checkpoints
        if asked == "auto":
            return asked
        world, names = self._engine.world, own_start_names()
        if not world.first_rank(lambda: names.was_begun(self._folder.begun) and bool(finished(checkpoints))):
            return asked
        self._reporter.note(
            f"checkpoint.resume={asked} was done by an earlier start: this one goes on from it"
        )
        return "auto"

    def _refuse_another_run(self, found: Found) -> None:
        saved, allow_change = found.training.get("identity", {}), self._run.checkpoint.allow_change
        for change in refuse_another_run(found.folder, saved, self._identity, allow_change=allow_change):
            self._reporter.note(f"changed since the checkpoint: {change}")

    def _load(self, found: Found) -> tuple[TrainingState, list[int]]:
        """Go on from `found`. Returns its state, and the bytes of tensors that each rank read."""
        world, engine = self._engine.world, self._engine
        weights = describe_weights(engine.built, engine.divisions)
        saved = open_state(found, weights, world, is_replicated=engine.is_replicated)
        self._engine.load_state(saved)
        restore_generators(found, world)
        stored = found.training["state"]
        state = TrainingState.from_json(stored, self._patience).within(self._train.num_rows)
        self.saves.saved_at = state.step if self._is_own(found.folder, state.step) else None
        return state, world.gather_objects(saved.bytes_read)

    def _is_own(self, found: Path, step: int) -> bool:
        """Whether `found` is this run's checkpoint of `step`: none of another run, none that was set aside."""
        return found.resolve() == (self._folder.checkpoints / folder_name(step)).resolve()

    def _tell_resumed(
        self,
        state: TrainingState,
        found: Found,
        passed_over: list[str],
        seconds: float,
        bytes_by_rank: list[int],
    ) -> None:
        saved, now = found.manifest.layout, layout_of(self._engine.world)
        self._reporter.write(
            ResumeRecord(
                step=state.step,
                path=str(found.folder),
                epoch=state.epoch(self._train.num_rows),
                saved_layout=str(saved),
                layout=str(now),
                seconds=seconds,
                num_bytes_by_rank=tuple(bytes_by_rank),
                passed_over=tuple(passed_over),
            )
        )
        moved = "" if now.has_ranks_of(saved) else f", saved at {saved}, now {now}"
        self._reporter.note(
            f"resumed after step {state.step} from {found.folder}{moved}: {format_bytes(sum(bytes_by_rank))} "
            f"read, at most {format_bytes(max(bytes_by_rank))} by a rank, {seconds:.1f} s "
            f"({found.verified_seconds:.1f} s to verify)"
        )

    def _after_clearing_the_way(self, found: Found | None, state: TrainingState, asked: str) -> TrainingState:
        """`state`, once nothing stands beside it that is not of its past. Collective.

        `asked`: what was done so, which a start of the same request is not to do again.
        """
        world, lost = self._engine.world, None
        if found is not None and self.begins_here:
            if state.best_step is not None:
                lost = f", that of step {state.best_step}, stays in {found.folder.parent}"
            state = state.without_scores(self._patience)
        elif (
            found is not None and state.best_step is None and found.training["state"]["best_step"] is not None
        ):
            lost = " was found by another metric, or on other held-out rows"
        start = None if found is None else found.folder
        first = 0 if self.begins_here else state.step
        aside, best_problem = world.first_rank(lambda: self._clear_the_way(start, state, first))
        for folder in aside:
            self._reporter.note(f"set aside {folder}: this run starts before it")
        if best_problem:
            lost = f", that of step {state.best_step}, cannot be used: {best_problem}"
            state = state.without_best()
        if lost:
            self._reporter.note(f"note: the best checkpoint so far{lost}. It is looked for anew from here.")
        if asked != "auto":
            world.first_rank(lambda: own_start_names().begin(self._folder.begun))
        # An earlier run's curves are not those of a new one; an evaluation that a start made after this checkpoint
        # is made again.
        step = -1 if self.begins_here else state.step
        self._reporter.cut_back(step, keep_evaluation=state.evaluated_at == state.step)
        return state

    def _clear_the_way(self, found: Path | None, state: TrainingState, first: int) -> tuple[list[Path], str]:
        """First rank: no checkpoint from step `first` on may win later. Those, and what is wrong with the best one."""
        aside = set_aside_newer(self._folder.checkpoints, found, first)
        best = self._best(state)
        problem = "" if best is None else why_incomplete(best) or ""
        write_hint(self._folder.path / "latest", self.last)
        write_hint(self._folder.path / "best", None if problem else best)
        return aside, problem

    def _best(self, state: TrainingState) -> Path | None:
        step = state.best_step
        return None if step is None else self._folder.checkpoints / folder_name(step)

    def _shared(self, state: TrainingState) -> Shared:
        every = self._run.checkpoint.keep_every
        return Shared(
            step=state.step,
            training={"state": state.to_json(), "identity": self._identity},
            weights=describe_weights(self._engine.built, self._engine.divisions),
            write_model=partial(write_folder, self._engine.built),
            accumulation=self._batch.accumulation,
            config_hash=identity_hash(self._identity),
            data={
                "fingerprint": self._train.fingerprint,
                "epoch": state.position.epoch,
                "cursor": state.position.cursor,
                "sequences_per_step": self._batch.global_sequences,
            },
            kept_for_ever=every is not None and state.step % every == 0,
        )


def _discard(value: object) -> None:
    """For an act whose answer no other rank needs."""
    del value
