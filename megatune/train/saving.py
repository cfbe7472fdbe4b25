"""The checkpoints of one start: what it goes on from, what it saves, what it goes back to."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from megatune.checkpoint.folders import prune, remove_unfinished, set_aside_newer, write_hint
from megatune.checkpoint.read import Found, find_checkpoint, layout_of, open_state, restore_generators
from megatune.checkpoint.weights_index import describe_weights
from megatune.checkpoint.write import Shared
from megatune.config import BatchShape, Run
from megatune.data.prepared import PreparedSet
from megatune.engine.base import TrainingEngine
from megatune.launch.checkpoints import folder_name
from megatune.launch.run_folder import RunFolder
from megatune.report.records import ResumeRecord
from megatune.tasks.scores import greater_is_better
from megatune.train.identity import identity_hash, refuse_another_run, run_identity
from megatune.train.reporting import Reporter
from megatune.train.saves import Saves
from megatune.train.state import TrainingState
from megatune.train.stopping import Patience, Stopping
from megatune.units import format_bytes


def patience_of(run: Run) -> Patience:
    """The rules by which the run file tells a better evaluation, and when it has waited long enough for one."""
    evaluate = run.evaluate
    metric, greater = evaluate.metric_for_best_model, evaluate.greater_is_better
    return Patience(
        evaluate.early_stopping_patience,
        metric=metric,
        greater_is_better=greater_is_better(metric) if greater is None else greater,
        min_delta=evaluate.early_stopping_min_delta,
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
        folder: RunFolder,
        reporter: Reporter,
        stopping: Stopping,
        beat: Callable[[], None],
    ) -> None:
        """beat: told while training waits for a save whose bytes still go out."""
        self._run, self._engine, self._batch, self._train = run, engine, batch, train
        self._folder, self._reporter = folder, reporter
        self._identity: dict[str, str] = {}
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
        started = time.monotonic()
        found, passed_over = find_checkpoint(checkpoints, self._run.checkpoint.resume, world)
        for reason in passed_over:
            self._reporter.note(f"passed over {reason}")
        bytes_by_rank: list[int] = []
        if found is not None:
            state, bytes_by_rank = self._load(found)
        seconds = time.monotonic() - started
        start = found.folder if found is not None else None
        aside, best_is_there = world.first_rank(lambda: self._clear_the_way(start, state))
        for folder in aside:
            self._reporter.note(f"set aside {folder}: this run starts before it")
        if not best_is_there:
            state = state.without_best()
        if found is None:
            self._reporter.cut_back(-1)  # a new run: an earlier one's curves are not its own
            return state
        self.saves.learn_speed()
        # An evaluation that a start made after this checkpoint, and that is made again.
        self._reporter.cut_back(state.step, keep_evaluation=state.evaluated_at == state.step)
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
        world.first_rank(lambda: _discard(self._clear_the_way(found.folder, state)))
        keep_evaluation = state.evaluated_at == state.step
        self._reporter.cut_back(state.step, keep_evaluation=keep_evaluation)
        return replace(state, position=bad.position, rollbacks=bad.rollbacks + 1)

    def load_best(self, state: TrainingState) -> TrainingState | None:
        """The state of the best checkpoint, its weights loaded into the engine; None without one."""
        best = self._best(state)
        if best is None or state.best_step == state.step:
            return None
        found, _ = find_checkpoint(self._folder.checkpoints, str(best), self._engine.world)
        if found is None:
            return None
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

    def _load(self, found: Found) -> tuple[TrainingState, list[int]]:
        """Go on from `found`. Returns its state, and the bytes of tensors that each rank read."""
        world, allow_change = self._engine.world, self._run.checkpoint.allow_change
        changed = refuse_another_run(
            found.folder, found.training.get("identity", {}), self._identity, allow_change=allow_change
        )
        for change in changed:
            self._reporter.note(f"changed since the checkpoint: {change}")
        engine = self._engine
        weights = describe_weights(engine.built, engine.divisions)
        saved = open_state(found, weights, world, is_replicated=engine.is_replicated)
        self._engine.load_state(saved)
        restore_generators(found, world)
        state = TrainingState.from_json(found.training["state"], patience_of(self._run)).within(
            self._train.num_rows
        )
        is_own = found.folder.parent.resolve() == self._folder.checkpoints.resolve()
        self.saves.saved_at = state.step if is_own else None
        return state, world.gather_objects(saved.bytes_read)

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

    def _clear_the_way(self, found: Path | None, state: TrainingState) -> tuple[list[Path], bool]:
        """First rank: nothing that is newer than the start may win later. Is the best checkpoint there?"""
        aside = set_aside_newer(self._folder.checkpoints, found, state.step)
        best = self._best(state)
        best_is_there = best is not None and best.is_dir()
        write_hint(self._folder.path / "latest", self.last)
        write_hint(self._folder.path / "best", best if best_is_there else None)
        return aside, best_is_there

    def _best(self, state: TrainingState) -> Path | None:
        step = state.best_step
        return None if step is None else self._folder.checkpoints / folder_name(step)

    def _shared(self, state: TrainingState) -> Shared:
        every = self._run.checkpoint.keep_every
        return Shared(
            step=state.step,
            training={"state": state.to_json(), "identity": self._identity},
            weights=describe_weights(self._engine.built, self._engine.divisions),
            write_model=self._engine.built.source.copy_without_weights,
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
