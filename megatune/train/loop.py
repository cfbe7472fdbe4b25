"""The training loop: steps, evaluations, saves, and one agreed end."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megatune import checkpoint
from megatune.config import BatchShape, Run
from megatune.data.batches import step_batches
from megatune.data.prepared import PreparedSet
from megatune.data.sampler import Position, next_position, num_steps_per_epoch
from megatune.engine.zero import ZeroEngine
from megatune.errors import CheckpointError
from megatune.evaluate.heldout import held_out_loss
from megatune.launch.run_folder import RunFolder
from megatune.report.records import EvalRecord, ResumeRecord, SaveRecord, StopRecord
from megatune.train.meters import Meter, peak_memory_bytes
from megatune.train.reporting import Reporter
from megatune.train.schedule import learning_rate_at
from megatune.train.step import train_step
from megatune.train.stopping import Patience, StopRequest

DONE, STOPPED_EARLY = 0, 75


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What all ranks share between two steps; a checkpoint's `training.json`."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    position: Position = Position()
    patience: Patience
    evaluated_at: int | None = None
    """The step after which the last evaluation was made."""
    skipped_steps: int = 0
    tokens: int = 0

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, object], limit: int | None) -> "TrainingState":
        """`limit`: the patience of the present run file, which may differ from the saved one."""
        position = Position(**stored["position"])  # type: ignore[arg-type]
        patience = replace(Patience(**stored["patience"]), limit=limit)  # type: ignore[arg-type]
        return cls(**{**stored, "position": position, "patience": patience})  # type: ignore[arg-type]


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
        stop: StopRequest,
    ) -> None:
        self._run, self._engine, self._batch = run, engine, batch
        self._train, self._validation = train, validation
        self._folder, self._reporter, self._meter, self._stop = folder, reporter, meter, stop
        self._total_steps = total_steps(run, train.num_rows, batch.global_sequences)
        self._state = TrainingState(patience=Patience(run.evaluate.early_stopping_patience))
        self._saved_at: int | None = None
        self._peak_memory_bytes: list[int] = []

    def run(self) -> int:
        """Train to the end, or to where something asks to stop. Returns the exit code. Collective."""
        started = time.monotonic()
        self._resume()
        if self._state.step == 0 or self._is_due(self._run.evaluate.eval_steps):
            self._evaluate()  # a run stopped by a signal saves at once and leaves the evaluation to the next
        reason, code = self._steps()
        if code == DONE:
            self._evaluate()
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
        return None if step is None else self._folder.checkpoints / checkpoint.folder_name(step)

    def _steps(self) -> tuple[str, int]:
        while self._state.step < self._total_steps and not self._state.patience.exhausted:
            if self._step():
                return f"asked to stop by {self._stop.asked_by or 'a signal to another rank'}", STOPPED_EARLY
            if self._is_due(self._run.evaluate.eval_steps):
                self._evaluate()
            if self._is_due(self._run.checkpoint.save_steps) and self._state.step < self._total_steps:
                self._save()  # after the last step the end of `run` saves
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
            stop_asked=self._stop.asked_by is not None,
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
        self._reporter.write(
            self._meter.record(
                result, step=self._state.step, epoch=self._epoch(), learning_rate=rate, seconds=seconds
            )
        )
        return result.stop_asked

    def _position_after(self, position: Position) -> Position:
        return next_position(
            position, num_rows=self._train.num_rows, global_rows=self._batch.global_sequences
        )

    def _epoch(self) -> float:
        position = self._state.position
        return position.epoch + position.cursor / self._train.num_rows

    def _evaluate(self) -> None:
        if self._validation is None or self._state.evaluated_at == self._state.step:
            return
        started = time.monotonic()
        micro = self._run.evaluate.per_device_eval_batch_size or self._batch.micro
        found = held_out_loss(
            self._engine, self._validation, micro_batch=micro, max_rows=self._run.evaluate.max_eval_rows
        )
        self._state = replace(
            self._state,
            patience=self._state.patience.after(found.loss),
            evaluated_at=self._state.step,
        )
        record = EvalRecord(
            step=self._state.step,
            split="validation",
            loss=found.loss,
            perplexity=found.perplexity,
            target_tokens=found.target_tokens,
            seconds=time.monotonic() - started,
        )
        self._reporter.write(record)
        self._reporter.note(
            f"eval step {record.step} loss {record.loss:.4f} perplexity {record.perplexity:.2f} "
            f"({record.target_tokens} target tokens, {record.seconds:.1f} s)"
        )

    def _resume(self) -> None:
        world = self._engine.world
        if world.is_first:
            checkpoint.remove_unfinished(self._folder.checkpoints)
        found, remarks = checkpoint.find_checkpoint(
            self._folder.checkpoints, self._run.checkpoint.resume, world
        )
        for remark in remarks:
            self._reporter.note(f"checkpoint {remark}")
        if found is None:
            self._reporter.cut_back(-1)  # a new run: an earlier one's curves are not its own
            return
        state, training = checkpoint.load_checkpoint(found, world)
        self._engine.load_state(state)
        self._check_same_data(found, training)
        self._state = TrainingState.from_json(training["state"], self._run.evaluate.early_stopping_patience)
        self._saved_at = self._state.step if found.parent == self._folder.checkpoints else None
        self._reporter.cut_back(self._state.step)
        self._reporter.write(ResumeRecord(step=self._state.step, path=str(found), epoch=self._epoch()))
        self._reporter.note(f"resumed after step {self._state.step} from {found}")

    def _check_same_data(self, found: Path, training: dict[str, object]) -> None:
        now = self._data_identity()
        if training["data"] != now:
            raise CheckpointError(
                f"{found} was trained on other data or with another batch or seed, so its place in the data means "
                f"nothing here. Saved: {training['data']}; this run: {now}. Use another train.output_dir, "
                "or checkpoint.resume=none to start again."
            )

    def _data_identity(self) -> dict[str, object]:
        return {
            "fingerprint": self._train.fingerprint,
            "global_sequences": self._batch.global_sequences,
            "seed": self._run.train.seed,
        }

    def _save(self) -> None:
        if self._saved_at == self._state.step:
            return
        started, world = time.monotonic(), self._engine.world
        path, num_bytes = checkpoint.save_checkpoint(
            self._folder.checkpoints,
            step=self._state.step,
            world=world,
            state=self._engine.state(),
            training={"state": self._state.to_json(), "data": self._data_identity()},
            weights=checkpoint.describe_weights(self._engine.built),
            write_model=self._engine.built.source.copy_without_weights,
        )
        self._saved_at = self._state.step
        if self._run.checkpoint.save_total_limit and world.is_first:
            checkpoint.prune(self._folder.checkpoints, self._run.checkpoint.save_total_limit)
        seconds = time.monotonic() - started
        self._reporter.write(
            SaveRecord(step=self._state.step, path=str(path), seconds=seconds, num_bytes=num_bytes)
        )
        self._reporter.note(f"saved {path} ({seconds:.1f} s)")
