"""The training loop: steps, evaluations, saves, and one agreed end."""

import socket
import time
from dataclasses import replace
from pathlib import Path

from torch.profiler import record_function

from megatune.config import BatchShape, Run
from megatune.data.batches import Batch, step_batches
from megatune.data.loader import StepLoader
from megatune.data.prepared import PreparedSet
from megatune.data.sampler import Position, next_position, total_steps
from megatune.engine.base import TrainingEngine
from megatune.engine.own_time import OwnTime
from megatune.evaluate.exam import Result
from megatune.launch.heartbeat import Heart
from megatune.launch.run_folder import RunFolder
from megatune.report.records import StopRecord
from megatune.train.bad_steps import BadSteps
from megatune.train.evaluating import Evaluations
from megatune.train.memory import MemoryMeter
from megatune.train.meters import Meter, memory_peaks, peak_memory_bytes
from megatune.train.profiling import StepProfiler
from megatune.train.reporting import Reporter
from megatune.train.saving import Checkpoints, patience_of
from megatune.train.schedule import learning_rate_at
from megatune.train.slow_ranks import SlowRanks, words_of
from megatune.train.state import TrainingState
from megatune.train.step import Listeners, StepResult, train_step
from megatune.train.stopping import Stopping

DONE, STOPPED_EARLY = 0, 75
_STEPS_TO_SETTLE = 3
"""Steps after which a start has seen what every step holds."""


class TrainingLoop:
    """Trains `engine` on `train`, from the newest checkpoint if the run asks for it."""

    def __init__(
        self,
        run: Run,
        engine: TrainingEngine,
        batch: BatchShape,
        train: PreparedSet,
        evaluations: Evaluations,
        *,
        folder: RunFolder,
        reporter: Reporter,
        meter: Meter,
        stopping: Stopping,
        heart: Heart,
        memory: MemoryMeter,
    ) -> None:
        self._run, self._engine, self._batch, self._folder = run, engine, batch, folder
        self._train, self._evaluations = train, evaluations
        self._reporter, self._meter = reporter, meter
        self._stopping, self._heart, self._memory = stopping, heart, memory
        self._total_steps = total_steps(run, train.num_rows, batch.global_sequences)
        patience = patience_of(run, evaluations.asked("validation"))
        self._state = TrainingState(patience=patience)
        self._loader = StepLoader(self._rows_at, after=self._position_after, workers=run.data.loader_workers)
        self._checkpoints = Checkpoints(
            run,
            engine,
            batch,
            train,
            patience=patience,
            folder=folder,
            reporter=reporter,
            stopping=stopping,
            beat=lambda: heart.beat("save"),
        )
        self._saves = self._checkpoints.saves
        self._bad_steps = BadSteps(run, self._checkpoints, reporter)
        self._profiler = StepProfiler(
            run.train.profile, folder.profile, engine.world, reporter, total_steps=self._total_steps
        )
        self._own_time = OwnTime(engine.world.device)
        self._slow_ranks = SlowRanks(run.health, engine.world.gather_objects(socket.gethostname()))
        self._listeners = Listeners(
            beat=self._beat,
            watch=memory.watch,
            before_update=self._saves.before_update,
            times=self._own_time.taken,
        )
        self._is_first_step = True
        self._steps_of_start = 0
        self._peak_memory_bytes: list[int] = []

    def run(self) -> int:
        """Train to the end, or to where something asks to stop. Returns the exit code. Collective."""
        started = time.monotonic()
        self._state = self._checkpoints.resume(self._state)
        if self._checkpoints.begins_here or self._goes_on():
            self._engine.world.first_rank(lambda: self._folder.exported.unlink(missing_ok=True))
        try:
            reason, code = self._to_the_end()
        finally:
            self._profiler.finish()
            self._loader.close()
        self._tell_memory()
        steps_done = self._state.step
        self._heart.beat("save")
        if self._is_worth_saving(code):
            self._state = self._saves.at_the_end(self._state, is_candidate=self._is_candidate())
        else:
            self._state = self._saves.finish(self._state)
        if code == DONE and self._run.evaluate.load_best_model_at_end:
            reason, code = self._score_best(reason)
        reserved, resident = zip(
            *self._engine.world.gather_objects(memory_peaks(self._engine.world.device)), strict=True
        )
        self._reporter.write(
            StopRecord(
                step=steps_done,
                reason=reason,
                exit_code=code,
                model_step=self._model_step() if code == DONE else None,
                seconds=time.monotonic() - started,
                peak_memory_bytes_by_rank=tuple(self._peak_memory_bytes),
                peak_reserved_bytes_by_rank=reserved,
                peak_rss_bytes_by_rank=resident,
            )
        )
        return code

    def _is_worth_saving(self, code: int) -> bool:
        """At the end. A start from another run's checkpoint that took no step leaves the next one to begin there."""
        begins = self._checkpoints.begins_here and self._steps_of_start == 0
        return self._run.checkpoint.save_at_end and self._state.step > 0 and (code == DONE or not begins)

    def _is_candidate(self) -> bool:
        """Whether a checkpoint of this step may be the best one: at a signal alone no undisturbed run has any."""
        return self._is_due(self._run.checkpoint.save_steps) or not self._goes_on()

    def _model_step(self) -> int:
        """The step of the model that is the result: of the export, where there is one."""
        saved = self._saves.saved_at
        if not self._run.checkpoint.export_at_end or saved in (None, self._state.step):
            return self._state.step
        self._reporter.note(
            f"WARNING, step {self._state.step} is not saved (checkpoint.save_at_end is false): the export is of step "
            f"{saved}"
        )
        return saved

    @property
    def final_checkpoint(self) -> Path | None:
        """The folder of the checkpoint that is the result: the newest, or the best where the run asks for it."""
        return self._checkpoints.last

    def _score_best(self, reason: str) -> tuple[str, int]:
        """Go back to the best checkpoint and score it on the test split; why and how that ended."""
        self._heart.beat("load")
        best = self._checkpoints.load_best(self._state)
        if best is not None:
            self._state = best
            self._reporter.note(f"the best model is that of step {best.step}")
        given_up = self._evaluate("test")
        return (reason, DONE) if given_up is None else (given_up, STOPPED_EARLY)

    def _to_the_end(self) -> tuple[str, int]:
        """Train and evaluate; why that ended, and the exit code that says so."""
        if self._is_stop_agreed():  # while it loaded: nothing is lost by not taking a step
            return self._reason_of_some_rank(), STOPPED_EARLY
        begins = self._checkpoints.begins_here
        if begins or self._is_due(self._run.evaluate.eval_steps):
            # A run that stopped early has left it to this start.
            reason = self._evaluate(*("validation", "test") if begins else ("validation",))
            if reason is not None:
                return reason, STOPPED_EARLY
        reason, code = self._steps()
        if code == DONE:
            at_best = self._run.evaluate.load_best_model_at_end
            given_up = self._evaluate(*("validation",) if at_best else ("validation", "test"))
            if given_up is not None:
                return given_up, STOPPED_EARLY
        return reason, code

    def _steps(self) -> tuple[str, int]:
        if self._state.step >= self._total_steps:
            self._reporter.note(f"nothing left to train: all {self._total_steps} steps are done")
        while self._goes_on():
            with self._profiler.step(self._state.step + 1):
                is_stop_asked = self._step()
            if is_stop_asked:
                return self._reason_of_some_rank(), STOPPED_EARLY
            if self._is_due(self._run.evaluate.eval_steps):
                reason = self._evaluate("validation")
                if reason is not None:
                    return reason, STOPPED_EARLY
            # After the last step the end of `run` saves, where it may.
            is_left_to_the_end = not self._goes_on() and self._run.checkpoint.save_at_end
            if self._is_due(self._run.checkpoint.save_steps) and not is_left_to_the_end:
                self._heart.beat("save")
                self._state = self._saves.on_the_way(self._state)
                if self._is_stop_agreed():  # now rather than after another step and another save
                    return self._reason_of_some_rank(), STOPPED_EARLY
        if self._state.patience.exhausted:
            return self._state.patience.reason, DONE
        return "all steps done", DONE

    def _goes_on(self) -> bool:
        return self._state.step < self._total_steps and not self._state.patience.exhausted

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self._state.step % every == 0

    def _step(self) -> bool:
        """Take one step. Returns whether some rank was asked to stop."""
        started, state = time.monotonic(), self._state
        self._own_time.begin()
        self._heart.beat(self._phase("data"), state.step + 1)
        rate = learning_rate_at(state.step, self._run.train, self._total_steps)
        self._memory.step_begins()
        result = self._train_step(rate)
        self._memory.step_ends()
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
        if not self._is_first_step:  # which compiles and warms up
            self._tell_slow_ranks(result)
        self._is_first_step = False
        epoch = self._state.epoch(self._train.num_rows)
        self._reporter.write(
            self._meter.record(
                result, step=self._state.step, epoch=epoch, learning_rate=rate, seconds=seconds
            )
        )
        self._state = self._bad_steps.handled(self._state, result, self._batch.global_sequences)
        self._state = self._saves.advance(self._state, all_ready=result.saves_ready)
        self._steps_of_start += 1
        if self._steps_of_start == _STEPS_TO_SETTLE:
            self._tell_memory()  # a start that is killed has said it
        return result.stop_asked

    def _train_step(self, rate: float) -> StepResult:
        world = self._engine.world
        with record_function("megatune::data"):
            batches = self._loader.take(self._state.position)
        self._own_time.rows_are_ready()
        self._memory.saw(batches)
        return train_step(
            self._engine,
            batches,
            rate,
            stop_asked=self._stopping.reason() is not None,
            save_ready=self._saves.is_ready,
            peak_memory_bytes=max(peak_memory_bytes(world.device), self._memory.most_ever),
            is_refused=self._bad_steps.refusal(self._state),
            listeners=self._listeners,
        )

    def _rows_at(self, position: Position) -> list[Batch]:
        world = self._engine.world
        return step_batches(
            self._train,
            position,
            seed=self._run.train.seed,
            micro_batch=self._batch.micro,
            accumulation=self._batch.accumulation,
            data_parallel=world.data_parallel,
            dp_rank=world.data_rank,
        )

    def _position_after(self, position: Position) -> Position:
        return next_position(
            position, num_rows=self._train.num_rows, global_rows=self._batch.global_sequences
        )

    def _tell_slow_ranks(self, result: StepResult) -> None:
        for record in self._slow_ranks.stepped(self._state.step, result.times):
            self._reporter.write(record)
            self._reporter.note(words_of(record))

    def _tell_memory(self) -> None:
        """What was held so far, beside what was planned. Collective."""
        record = self._memory.record(self._state.step)
        if record is not None:
            self._reporter.write(record)

    def _beat(self, phase: str) -> None:
        self._memory.phase = f"{phase} of step {self._state.step + 1}"
        self._heart.beat(self._phase(phase))

    def _phase(self, phase: str) -> str:
        return "first step" if self._is_first_step else phase

    def _reason_of_some_rank(self) -> str:
        return self._stopping.reason() or "asked to stop by a signal to another rank"

    def _is_stop_agreed(self, *, before_evaluation: bool = False) -> bool:
        """Whether some rank knows a reason to stop. Takes a save in flight further. Collective."""
        known = self._stopping.reason(before_evaluation=before_evaluation) is not None
        is_stop, is_waited_for = self._engine.world.any_ranks(known, not self._saves.is_ready)
        self._state = self._saves.advance(self._state, all_ready=not is_waited_for)
        return is_stop

    def _is_evaluation_given_up(self) -> bool:
        self._heart.beat("eval")
        return self._is_stop_agreed()

    def _evaluate(self, *splits: str) -> str | None:
        """Score those of `splits` that there are and that this step has no scores of yet.

        Why it was given up, or not begun, for a stop; else None.
        """
        for split in splits:
            if split not in self._evaluations.exams or self._is_scored(split):
                continue
            self._heart.beat("eval")
            if self._is_stop_agreed(before_evaluation=True):
                return self._reason_of_some_rank()
            self._memory.phase = f"evaluation at step {self._state.step}"
            found = self._evaluations.score(split, self._state.step, self._is_evaluation_given_up)
            if found is None:
                return self._reason_of_some_rank()
            result, seconds = found
            self._stopping.evaluated(seconds)
            if split == "validation":
                self._validated(result)
        return None

    def _is_scored(self, split: str) -> bool:
        if split == "validation":
            return self._state.evaluated_at == self._state.step
        return self._evaluations.is_scored(split, self._state.step)

    def _validated(self, result: Result) -> None:
        self._state = self._state.evaluated(result.value(self._state.patience.metric))
        # Saved at a signal, evaluated by the next start.
        if self._checkpoints.is_saved(self._state) and self._is_candidate():
            self._state = self._state.saved()
            self._checkpoints.tend(self._state)
