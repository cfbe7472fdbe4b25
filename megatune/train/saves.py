"""The saves of one start: behind training where memory allows, one at a time, and what is done when one fails."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatune.checkpoint.in_flight import SaveInFlight
from megatune.checkpoint.snapshot import HostCopy, SaveMode, choose_mode
from megatune.checkpoint.write import Shared
from megatune.config import Run
from megatune.engine.base import TrainingEngine
from megatune.errors import SaveError
from megatune.report.records import SaveFailedRecord, SaveRecord
from megatune.train.reporting import Reporter
from megatune.train.state import TrainingState
from megatune.train.stopping import Stopping
from megatune.units import format_bytes, format_duration

_WORTH_SAYING_S = 30.0
_LOOK_EVERY_S = 1.0


@dataclass
class _Pending:
    """The save in flight."""

    save: SaveInFlight = field(init=False)
    before: TrainingState
    """The state as it was before this checkpoint could become the best one."""
    must_succeed: bool
    blocked_s: float
    """What training has waited for it so far."""


@dataclass
class SaveSpeed:
    """How fast this run's disk takes checkpoints, by the last one that was saved."""

    bytes_per_s: float | None = None

    def learn(self, num_bytes: int | None, seconds: float | None) -> None:
        if num_bytes and seconds:
            self.bytes_per_s = num_bytes / seconds

    def estimate_s(self, num_bytes: int) -> float | None:
        """What a save of so many bytes will take; None before the first one."""
        return num_bytes / self.bytes_per_s if self.bytes_per_s else None


class Saves:
    """Begins saves, takes them through to their commit, and tells how they went. Collective but for `is_ready`.

    describe, tend: what the first rank adds to a checkpoint, and what it does about hints and older
    checkpoints once it stands. beat: told when training waits and bytes still go out.
    """

    def __init__(
        self,
        run: Run,
        engine: TrainingEngine,
        reporter: Reporter,
        stopping: Stopping,
        *,
        checkpoints: Path,
        describe: Callable[[TrainingState], Shared],
        tend: Callable[[TrainingState], str | None],
        beat: Callable[[], None],
    ) -> None:
        self._run, self._engine, self._reporter, self._stopping = run, engine, reporter, stopping
        self._checkpoints, self._describe, self._tend, self._beat = checkpoints, describe, tend, beat
        self._mode: SaveMode | None = None
        self._host_copy: HostCopy | None = None
        self._pending: _Pending | None = None
        self._speed = SaveSpeed()
        self.saved_at: int | None = None
        """The step of the newest checkpoint that this start has committed or gone on from."""

    @property
    def is_ready(self) -> bool:
        """Whether this rank has nothing left to do for a save in flight until the others are as far."""
        return self._pending is None or self._pending.save.is_ready

    def before_update(self) -> None:
        """Wait until the optimizer may change what a save in flight is copying. Not collective."""
        if self._pending is not None and self._pending.save.is_behind:
            started = time.monotonic()
            self._pending.save.wait_until_copied()
            self._pending.blocked_s += time.monotonic() - started

    def advance(self, state: TrainingState, *, all_ready: bool) -> TrainingState:
        """Take the save in flight a step further when all ranks are ready. Returns the state to go on with.

        Raises what the save has failed of, unless `checkpoint.on_failure` wants to go on.
        """
        if self._pending is None or not all_ready:
            return state
        pending, started = self._pending, time.monotonic()
        self._pending = None
        try:
            is_saved = pending.save.advance()
        except SaveError as error:
            return self._failed(error, pending, started, state)
        pending.blocked_s += time.monotonic() - started
        if is_saved:
            self._tell(pending)
        else:
            self._pending = pending
        return state

    def finish(self, state: TrainingState) -> TrainingState:
        """Wait for the save in flight, if there is one. As `advance`."""
        while self._pending is not None:
            pending, started = self._pending, time.monotonic()
            all_ready = self._wait_a_little(pending.save)
            pending.blocked_s += time.monotonic() - started
            state = self.advance(state, all_ready=all_ready)
        return state

    def _wait_a_little(self, save: SaveInFlight) -> bool:
        """Whether all ranks are ready. A slow disk of one rank is no hang of any: all beat while bytes go out."""
        before = save.own_bytes_written
        save.wait(_LOOK_EVERY_S)
        moved = save.own_bytes_written != before
        is_waited_for, is_moving = self._engine.world.any_ranks(not save.is_ready, moved)
        if is_moving:
            self._beat()
        return not is_waited_for

    def on_the_way(self, state: TrainingState) -> TrainingState:
        """Begin to save `state`, behind training where that is chosen; a save before it is finished first."""
        self._tell_of_waiting(state.step)
        state = self.finish(state)
        if self._mode is None:
            self._mode = choose_mode(
                self._run.checkpoint.asynchronous, self._engine.state(), self._engine.world
            )
            self._reporter.note(str(self._mode))
        if not self._mode.is_async:
            return self.finish(self._begun(state, None))
        self._host_copy = self._host_copy or HostCopy()
        return self._begun(state, self._host_copy)

    def learn_speed(self) -> None:
        """Take the speed of the disk from the saves of earlier starts."""
        for record in self._engine.world.first_rank(self._reporter.earlier_saves):
            self._speed.learn(record.get("num_bytes"), record.get("seconds"))

    def at_the_end(self, state: TrainingState, *, is_candidate: bool) -> TrainingState:
        """Have `state` saved when this returns, or raise, whatever `checkpoint.on_failure` says.

        is_candidate: whether the checkpoint may be the best one.
        """
        state = self.finish(state)
        if self.saved_at == state.step:
            return state
        return self.finish(self._begun(state, None, must_succeed=True, is_candidate=is_candidate))

    def _begun(
        self,
        state: TrainingState,
        copy_to: HostCopy | None,
        *,
        must_succeed: bool = False,
        is_candidate: bool = True,
    ) -> TrainingState:
        started, saved = time.monotonic(), state.saved() if is_candidate else state
        pending = _Pending(before=state, must_succeed=must_succeed, blocked_s=0.0)
        try:
            pending.save = SaveInFlight(
                self._checkpoints,
                world=self._engine.world,
                state=self._engine.state(),
                shared=self._describe(saved),
                then=lambda: self._tend(saved),
            )
        except SaveError as error:
            return self._failed(error, pending, started, state)
        self._announce(state.step, pending.save.state_bytes)
        pending.save.begin(copy_to)
        pending.blocked_s = time.monotonic() - started
        self._pending = pending
        self._stopping.save_began()
        return saved

    def _failed(
        self, error: SaveError, pending: _Pending, started: float, state: TrainingState
    ) -> TrainingState:
        """The state that training goes on with after a save that its disk did not take."""
        self._stopping.save_ended()
        if pending.must_succeed or self._run.checkpoint.on_failure == "stop":
            raise error
        step, before = pending.before.step, pending.before
        seconds = pending.blocked_s + time.monotonic() - started
        self._reporter.write(SaveFailedRecord(step=step, reason=str(error), seconds=seconds))
        self._reporter.note(f"WARNING, step {step} is NOT saved, training goes on: {error}")
        if state.best_step != step:
            return state
        return replace(state, best_step=before.best_step, best_value=before.best_value)

    def _tell(self, pending: _Pending) -> None:
        save, blocked_s = pending.save, pending.blocked_s
        # Of the first rank, which commits: only its record is kept, and only it knows the time that is left.
        seconds = save.committed_at - save.began_at
        self.saved_at = save.step
        self._stopping.saved(seconds)
        self._speed.learn(save.num_bytes, seconds)
        self._reporter.write(
            SaveRecord(
                step=save.step,
                path=str(save.final),
                seconds=seconds,
                blocked_seconds=blocked_s,
                num_bytes=save.num_bytes,
            )
        )
        behind = f", training waited {blocked_s:.1f} s" if save.is_behind else ""
        self._reporter.note(f"saved {save.final} ({seconds:.1f} s{behind})")
        if save.remark:
            self._reporter.note(f"WARNING, {save.remark}")

    def _announce(self, step: int, num_bytes: int) -> None:
        """Say how long this will take when that is long, or longer than the job has left."""
        seconds = self._speed.estimate_s(num_bytes)
        if seconds is None:
            return
        left_s = self._stopping.seconds_left()
        is_short = left_s is not None and seconds > left_s
        if seconds >= _WORTH_SAYING_S or is_short:
            end = f"; the job ends in {format_duration(left_s)}" if left_s is not None else ""
            self._reporter.note(
                f"{'WARNING, ' if is_short else ''}step {step}: saving {format_bytes(num_bytes)} takes about "
                f"{format_duration(seconds)} at {format_bytes(num_bytes / seconds)}/s, as the last one{end}"
            )

    def _tell_of_waiting(self, step: int) -> None:
        if self._pending is not None and not self._pending.save.is_ready:
            save = self._pending.save
            written_s = time.monotonic() - save.began_at
            self._reporter.note(
                f"step {step} is due to be saved and step {save.step} is still being written after "
                f"{format_duration(written_s)} ({format_bytes(save.own_bytes_written)} of "
                f"{format_bytes(save.own_bytes)} of the first rank): training waits. A disk this slow wants a "
                "larger checkpoint.save_steps."
            )
