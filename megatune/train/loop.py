"""The training loop: steps, evaluations, saves, and one agreed end."""

import math
import time
from dataclasses import replace
from pathlib import Path

from megatune.checkpoint.folders import prune, remove_unfinished, set_aside_newer, write_hint
from megatune.checkpoint.layout import folder_name
from megatune.checkpoint.read import Found, find_checkpoint, layout_of, open_state, restore_generators
from megatune.checkpoint.weights_index import describe_weights
from megatune.checkpoint.write import Shared, save_checkpoint
from megatune.config import BatchShape, Run
from megatune.data.batches import step_batches
from megatune.data.prepared import PreparedSet
from megatune.data.sampler import Position, next_position, num_steps_per_epoch
from megatune.engine.zero import ZeroEngine
from megatune.errors import MegatuneError, SaveError
from megatune.evaluate.heldout import held_out_loss
from megatune.launch.run_folder import RunFolder
from megatune.report.records import EvalRecord, ResumeRecord, SaveFailedRecord, SaveRecord, StopRecord
from megatune.train.identity import identity_hash, refuse_another_run, run_identity
from megatune.train.meters import Meter, peak_memory_bytes
from megatune.train.reporting import Reporter
from megatune.train.schedule import learning_rate_at
from megatune.train.state import TrainingState
from megatune.train.step import StepResult, train_step
from megatune.train.stopping import Patience, Stopping
from megatune.units import format_bytes

DONE, STOPPED_EARLY = 0, 75


def total_steps(run: Run, num_rows: int, global_rows: int) -> int:
    """Optimizer steps of the whole run."""
    if run.train.max_steps is not None:
        return run.train.max_steps
    return max(1, round(run.train.num_train_epochs * num_steps_per_epoch(num_rows, global_rows)))


class TrainingLoop:
    """Trains `engine` on `train`, from the newest checkpoint if the run asks for it."""

    def __init__(
        self,
        run: Run,
        engine: ZeroEngine,
        batch: BatchShape,
        train: PreparedSet,
        validation: PreparedSet | None,
        *,
        folder: RunFolder,
        reporter: Reporter,
        meter: Meter,
        stopping: Stopping,
    ) -> None:
        self._run, self._engine, self._batch = run, engine, batch
        self._train, self._validation = train, validation
        self._folder, self._reporter, self._meter = folder, reporter, meter
        self._stopping = stopping
        self._total_steps = total_steps(run, train.num_rows, batch.global_sequences)
        self._state = TrainingState(patience=Patience(run.evaluate.early_stopping_patience))
        self._identity: dict[str, str] = {}
        self._saved_at: int | None = None
        self._peak_memory_bytes: list[int] = []

    def run(self) -> int:
        """Train to the end, or to where something asks to stop. Returns the exit code. Collective."""
        started = time.monotonic()
        self._resume()
        reason, code = self._to_the_end()
        if self._state.step > 0:
            self._save()
        self._reporter.write(
            StopRecord(
                step=self._state.step,
                reason=reason,
                exit_code=code,
                seconds=time.monotonic() - started,
                peak_memory_bytes_by_rank=tuple(self._peak_memory_bytes),
            )
        )
        return code

    @property
    def last_checkpoint(self) -> Path | None:
        """The folder of the newest checkpoint this start has saved or gone on from."""
        step = self._saved_at
        return None if step is None else self._folder.checkpoints / folder_name(step)

    def _to_the_end(self) -> tuple[str, int]:
        """Train and evaluate; why that ended, and the exit code that says so."""
        if self._state.step == 0 or self._is_due(self._run.evaluate.eval_steps):
            reason = self._evaluate()  # a run that stopped early has left it to this start
            if reason is not None:
                return reason, STOPPED_EARLY
        reason, code = self._steps()
        if code == DONE and (given_up := self._evaluate()) is not None:
            return given_up, STOPPED_EARLY
        return reason, code

    def _steps(self) -> tuple[str, int]:
        if self._state.step >= self._total_steps:
            self._reporter.note(f"nothing left to train: all {self._total_steps} steps are done")
        while self._state.step < self._total_steps and not self._state.patience.exhausted:
            if self._step():
                return self._reason_of_some_rank(), STOPPED_EARLY
            if self._is_due(self._run.evaluate.eval_steps):
                reason = self._evaluate()
                if reason is not None:
                    return reason, STOPPED_EARLY
            if self._is_due(self._run.checkpoint.save_steps) and self._state.step < self._total_steps:
                self._save_on_the_way()  # after the last step the end of `run` saves
        if self._state.patience.exhausted:
            return f"no lower loss in {self._state.patience.limit} evaluations", DONE
        return "all steps done", DONE

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self._state.step % every == 0

    def _step(self) -> bool:
        """Take one step. Returns whether some rank was asked to stop."""
        started, state, world = time.monotonic(), self._state, self._engine.world
        rate = learning_rate_at(state.step, self._run.train, self._total_steps)
        batches = step_batches(
            self._train,
            state.position,
            seed=self._run.train.seed,
            micro_batch=self._batch.micro,
            accumulation=self._batch.accumulation,
            data_parallel=world.data_parallel,
            dp_rank=world.data_rank,
        )
        result = train_step(
            self._engine,
            batches,
            rate,
            stop_asked=self._stopping.reason() is not None,
            peak_memory_bytes=peak_memory_bytes(world.device),
        )
        self._state = replace(
            state,
            step=state.step + 1,
            position=self._position_after(state.position),
            skipped_steps=state.skipped_steps + result.outcome.skipped,
            tokens=state.tokens + result.tokens,
        )
        self._peak_memory_bytes = result.peak_memory_bytes
        seconds = time.monotonic() - started
        self._stopping.stepped(seconds)
        self._reporter.write(
            self._meter.record(
                result, step=self._state.step, epoch=self._epoch(), learning_rate=rate, seconds=seconds
            )
        )
        self._check_finite(result)
        return result.stop_asked

    def _check_finite(self, result: StepResult) -> None:
        """Raise MegatuneError when the step has spoilt the weights; all ranks see the same numbers.

        fp16 overflows now and then, and the loss scale then falls. Elsewhere a step that is not
        finite leaves weights that no later step repairs. DeepSpeed gives the norm of such a gradient as -1.
        """
        norm, outcome = result.outcome.grad_norm, result.outcome
        norm_is_fine = norm is None or 0 <= norm < math.inf
        if self._run.precision == "fp16" or (
            math.isfinite(result.loss) and norm_is_fine and not outcome.skipped
        ):
            return
        shown = f"{norm:.4g}" if norm is not None and norm_is_fine else "not finite"
        newest = self.last_checkpoint
        go_on = f"start again to go on from {newest}" if newest else "start again"
        raise MegatuneError(
            f"step {self._state.step}: loss {result.loss:.4g}, gradient norm {shown}. Training cannot recover "
            "from numbers that are not finite; nothing was saved. Lower train.learning_rate (now "
            f"{self._run.train.learning_rate:g}) or look at the data of this step, then {go_on}."
        )

    def _position_after(self, position: Position) -> Position:
        return next_position(
            position, num_rows=self._train.num_rows, global_rows=self._batch.global_sequences
        )

    def _epoch(self) -> float:
        position = self._state.position
        return position.epoch + position.cursor / self._train.num_rows

    def _reason_of_some_rank(self) -> str:
        return self._stopping.reason() or "asked to stop by a signal to another rank"

    def _is_stop_agreed(self, *, before_evaluation: bool = False) -> bool:
        """Whether some rank knows a reason to stop. Collective."""
        known = self._stopping.reason(before_evaluation=before_evaluation) is not None
        return self._engine.world.any_rank(known)

    def _evaluate(self) -> str | None:
        """Evaluate this step, unless that is done. Why it was given up, or not begun, for a stop; else None."""
        if self._validation is None or self._state.evaluated_at == self._state.step:
            return None
        if self._is_stop_agreed(before_evaluation=True):
            return self._reason_of_some_rank()
        started = time.monotonic()
        micro = self._run.evaluate.per_device_eval_batch_size or self._batch.micro
        found = held_out_loss(
            self._engine,
            self._validation,
            micro_batch=micro,
            max_rows=self._run.evaluate.max_eval_rows,
            is_given_up=self._is_stop_agreed,
        )
        if found is None:
            return self._reason_of_some_rank()
        self._state = self._state.evaluated(found.loss)
        if self._saved_at == self._state.step:  # saved at a signal, evaluated by the next start
            self._state = self._state.saved()
            self._engine.world.first_rank(self._tend_checkpoints)
        record = EvalRecord(
            step=self._state.step,
            split="validation",
            loss=found.loss,
            perplexity=found.perplexity,
            target_tokens=found.target_tokens,
            seconds=time.monotonic() - started,
        )
        self._stopping.evaluated(record.seconds)
        self._reporter.write(record)
        self._reporter.note(
            f"eval step {record.step} loss {_shown(record.loss, 4)} perplexity {_shown(record.perplexity, 2)} "
            f"({record.target_tokens} target tokens, {record.seconds:.1f} s)"
        )
        return None

    def _resume(self) -> None:
        world, checkpoints = self._engine.world, self._folder.checkpoints
        world.first_rank(lambda: _discard(remove_unfinished(checkpoints)))
        self._identity = world.first_rank(
            lambda: run_identity(self._run, self._engine.built, self._batch, self._train)
        )
        started = time.monotonic()
        found, passed_over = find_checkpoint(checkpoints, self._run.checkpoint.resume, world)
        for reason in passed_over:
            self._reporter.note(f"passed over {reason}")
        bytes_by_rank = self._load(found) if found is not None else []
        seconds = time.monotonic() - started
        start = found.folder if found is not None else None
        aside, best_is_there = world.first_rank(lambda: self._clear_the_way(start))
        for folder in aside:
            self._reporter.note(f"set aside {folder}: this run starts before it")
        if not best_is_there:
            self._state = self._state.without_best()
        if found is None:
            self._reporter.cut_back(-1)  # a new run: an earlier one's curves are not its own
            return
        # An evaluation that a start made after this checkpoint, and that is made again.
        is_evaluated = self._state.evaluated_at == self._state.step
        self._reporter.cut_back(self._state.step, keep_evaluation=is_evaluated)
        self._tell_resumed(found, passed_over, seconds, bytes_by_rank)

    def _tell_resumed(
        self, found: Found, passed_over: list[str], seconds: float, bytes_by_rank: list[int]
    ) -> None:
        saved, now = found.manifest.layout, layout_of(self._engine.world)
        self._reporter.write(
            ResumeRecord(
                step=self._state.step,
                path=str(found.folder),
                epoch=self._epoch(),
                saved_layout=str(saved),
                layout=str(now),
                seconds=seconds,
                num_bytes_by_rank=tuple(bytes_by_rank),
                passed_over=tuple(passed_over),
            )
        )
        moved = "" if now.has_ranks_of(saved) else f", saved at {saved}, now {now}"
        self._reporter.note(
            f"resumed after step {self._state.step} from {found.folder}{moved}: {format_bytes(sum(bytes_by_rank))} "
            f"read, at most {format_bytes(max(bytes_by_rank))} by a rank, {seconds:.1f} s "
            f"({found.verified_seconds:.1f} s to verify)"
        )

    def _load(self, found: Found) -> list[int]:
        """Go on from `found`. Returns the bytes of tensors that each rank read."""
        world, allow_change = self._engine.world, self._run.checkpoint.allow_change
        changed = refuse_another_run(
            found.folder, found.training.get("identity", {}), self._identity, allow_change=allow_change
        )
        for change in changed:
            self._reporter.note(f"changed since the checkpoint: {change}")
        saved = open_state(found, describe_weights(self._engine.built), world)
        self._engine.load_state(saved)
        restore_generators(found, world)
        self._state = TrainingState.from_json(
            found.training["state"], self._run.evaluate.early_stopping_patience
        ).within(self._train.num_rows)
        is_own = found.folder.parent.resolve() == self._folder.checkpoints.resolve()
        self._saved_at = self._state.step if is_own else None
        return world.gather_objects(saved.bytes_read)

    def _clear_the_way(self, found: Path | None) -> tuple[list[Path], bool]:
        """First rank: nothing that is newer than the start may win later. Is the best checkpoint there?"""
        aside = set_aside_newer(self._folder.checkpoints, found, self._state.step)
        best = self._best_checkpoint
        best_is_there = best is not None and best.is_dir()
        write_hint(self._folder.path / "latest", self.last_checkpoint)
        write_hint(self._folder.path / "best", best if best_is_there else None)
        return aside, best_is_there

    @property
    def _best_checkpoint(self) -> Path | None:
        step = self._state.best_step
        return None if step is None else self._folder.checkpoints / folder_name(step)

    def _save_on_the_way(self) -> None:
        """Save, or go on without where the run asks for that and the disk is what refused. Collective."""
        started = time.monotonic()
        try:
            self._save()
        except SaveError as error:
            if self._run.checkpoint.on_failure == "stop":
                raise
            self._reporter.write(
                SaveFailedRecord(step=self._state.step, reason=str(error), seconds=time.monotonic() - started)
            )
            self._reporter.note(f"WARNING, step {self._state.step} is NOT saved, training goes on: {error}")

    def _save(self) -> None:
        if self._saved_at == self._state.step:
            return
        started, world = time.monotonic(), self._engine.world
        state = self._state.saved()
        path, num_bytes = save_checkpoint(
            self._folder.checkpoints, world=world, state=self._engine.state(), shared=self._shared(state)
        )
        self._state, self._saved_at = state, state.step
        world.first_rank(self._tend_checkpoints)
        seconds = time.monotonic() - started
        self._stopping.saved(seconds)
        self._reporter.write(
            SaveRecord(step=self._state.step, path=str(path), seconds=seconds, num_bytes=num_bytes)
        )
        self._reporter.note(f"saved {path} ({seconds:.1f} s)")

    def _shared(self, state: TrainingState) -> Shared:
        every = self._run.checkpoint.keep_every
        return Shared(
            step=state.step,
            training={"state": state.to_json(), "identity": self._identity},
            weights=describe_weights(self._engine.built),
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

    def _tend_checkpoints(self) -> None:
        """First rank: point at the newest and the best checkpoint, and let go of others."""
        newest, best = self.last_checkpoint, self._best_checkpoint
        write_hint(self._folder.path / "latest", newest)
        write_hint(self._folder.path / "best", best)
        keep = self._run.checkpoint.save_total_limit
        if keep:
            protected = {folder for folder in (newest, best) if folder is not None}
            prune(self._folder.checkpoints, keep, protected=protected)


def _shown(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _discard(value: object) -> None:
    """For an act whose answer no other rank needs."""
    del value
