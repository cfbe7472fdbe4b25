"""The training loop: steps, evaluations, saves, and one agreed end."""

import time
from dataclasses import replace
from pathlib import Path

from megatune.config import BatchShape, Run
from megatune.data.batches import step_batches
from megatune.data.prepared import PreparedSet
from megatune.data.sampler import next_position, num_steps_per_epoch
from megatune.engine.base import TrainingEngine
from megatune.evaluate.heldout import held_out_loss
from megatune.launch.heartbeat import Heart
from megatune.launch.run_folder import RunFolder
from megatune.report.records import EvalRecord, StopRecord
from megatune.train.bad_steps import BadSteps
from megatune.train.meters import Meter, peak_memory_bytes
from megatune.train.reporting import Reporter
from megatune.train.saving import Checkpoints
from megatune.train.schedule import learning_rate_at
from megatune.train.state import TrainingState
from megatune.train.step import StepResult, train_step
from megatune.train.stopping import Patience, Stopping

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
        engine: TrainingEngine,
        batch: BatchShape,
        train: PreparedSet,
        validation: PreparedSet | None,
        *,
        folder: RunFolder,
        reporter: Reporter,
        meter: Meter,
        stopping: Stopping,
        heart: Heart,
    ) -> None:
        self._run, self._engine, self._batch = run, engine, batch
        self._train, self._validation = train, validation
        self._reporter, self._meter = reporter, meter
        self._stopping, self._heart = stopping, heart
        self._total_steps = total_steps(run, train.num_rows, batch.global_sequences)
        self._state = TrainingState(patience=Patience(run.evaluate.early_stopping_patience))
        self._checkpoints = Checkpoints(
            run, engine, batch, train, folder=folder, reporter=reporter, on_saved=stopping.saved
        )
        self._bad_steps = BadSteps(run, self._checkpoints, reporter)
        self._is_first_step = True
        self._peak_memory_bytes: list[int] = []

    def run(self) -> int:
        """Train to the end, or to where something asks to stop. Returns the exit code. Collective."""
        started = time.monotonic()
        self._state = self._checkpoints.resume(self._state)
        reason, code = self._to_the_end()
        if self._state.step > 0 and self._run.checkpoint.save_at_end:
            self._heart.beat("save")
            self._state = self._checkpoints.save(self._state)
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
        return self._checkpoints.last

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
                self._heart.beat("save")  # after the last step the end of `run` saves
                self._state = self._checkpoints.save_on_the_way(self._state)
        if self._state.patience.exhausted:
            return f"no lower loss in {self._state.patience.limit} evaluations", DONE
        return "all steps done", DONE

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self._state.step % every == 0

    def _step(self) -> bool:
        """Take one step. Returns whether some rank was asked to stop."""
        started, state = time.monotonic(), self._state
        self._heart.beat(self._phase("data"), state.step + 1)
        rate = learning_rate_at(state.step, self._run.train, self._total_steps)
        result = self._train_step(rate)
        position = next_position(
            state.position, num_rows=self._train.num_rows, global_rows=self._batch.global_sequences
        )
        self._state = replace(
            state,
            step=state.step + 1,
            position=position,
            skipped_steps=state.skipped_steps + result.outcome.skipped,
            tokens=state.tokens + result.tokens,
        )
        self._peak_memory_bytes = result.peak_memory_bytes
        seconds = time.monotonic() - started
        self._stopping.stepped(seconds)
        self._is_first_step = False
        epoch = self._state.epoch(self._train.num_rows)
        self._reporter.write(
            self._meter.record(
                result, step=self._state.step, epoch=epoch, learning_rate=rate, seconds=seconds
            )
        )
        self._state = self._bad_steps.handled(self._state, result, self._batch.global_sequences)
        return result.stop_asked

    def _train_step(self, rate: float) -> StepResult:
        world = self._engine.world
        batches = step_batches(
            self._train,
            self._state.position,
            seed=self._run.train.seed,
            micro_batch=self._batch.micro,
            accumulation=self._batch.accumulation,
            data_parallel=world.data_parallel,
            dp_rank=world.data_rank,
        )
        return train_step(
            self._engine,
            batches,
            rate,
            stop_asked=self._stopping.reason() is not None,
            peak_memory_bytes=peak_memory_bytes(world.device),
            is_refused=self._bad_steps.refusal(self._state),
            beat=lambda phase: self._heart.beat(self._phase(phase)),
        )

    def _phase(self, phase: str) -> str:
        return "first step" if self._is_first_step else phase

    def _reason_of_some_rank(self) -> str:
        return self._stopping.reason() or "asked to stop by a signal to another rank"

    def _is_stop_agreed(self, *, before_evaluation: bool = False) -> bool:
        """Whether some rank knows a reason to stop. Collective."""
        self._heart.beat("eval")
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
        if self._checkpoints.is_saved(self._state):  # saved at a signal, evaluated by the next start
            self._state = self._state.saved()
            self._checkpoints.tend(self._state)
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


def _shown(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
