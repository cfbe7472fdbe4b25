"""What is done about a step whose numbers are no good: leave it out, go back, or stop (`health` of the run file)."""

import math
from collections.abc import Callable
from dataclasses import replace

from megatune.config import Run
from megatune.errors import MegatuneError, SaveError
from megatune.report.records import FaultRecord
from megatune.train.health import Finding, judge_loss, remember_loss
from megatune.train.reporting import Reporter
from megatune.train.saving import Checkpoints
from megatune.train.state import TrainingState
from megatune.train.step import StepResult


class BadSteps:
    """Judges every step by numbers that all ranks share, so that all do the same."""

    def __init__(self, run: Run, checkpoints: Checkpoints, reporter: Reporter) -> None:
        self._run, self._health = run, run.health
        self._checkpoints, self._reporter = checkpoints, reporter

    def refusal(self, state: TrainingState) -> Callable[[float], bool] | None:
        """What tells from a step's loss, before its update, to leave it out; None where that cannot be."""
        if "skip" not in (self._health.on_nonfinite, self._health.on_spike):
            return None

        def is_refused(loss: float) -> bool:
            finding = judge_loss(self._health, state.recent_losses, loss)
            return finding is not None and finding.remedy == "skip"

        return is_refused

    def handled(self, state: TrainingState, result: StepResult, step_sequences: int) -> TrainingState:
        """The state to go on with after the step that led to `state`. Collective.

        Raises MegatuneError where the run file wants to stop, or its bounds are reached.
        """
        finding = self._judge(state, result)
        losses = remember_loss(self._health, state.recent_losses, result.loss, finding)
        state = replace(state, recent_losses=losses)
        if finding is None or finding.remedy == "warn":
            if finding is not None:
                self._tell(state.step, finding)
            return replace(state, bad_steps_in_a_row=0)
        if finding.remedy == "skip":
            return self._left_out(state, finding, step_sequences)
        if finding.remedy == "rollback":
            return self._gone_back(state, finding, step_sequences)
        raise self._ended(state, finding, self._as_asked(finding))

    def _judge(self, state: TrainingState, result: StepResult) -> Finding | None:
        """What is wrong with the step.

        fp16 overflows now and then, and the loss scale then falls. Elsewhere DeepSpeed takes no step whose
        gradient norm is not finite, and gives its norm as -1 or none.
        """
        norm, outcome = result.outcome.grad_norm, result.outcome
        norm_is_fine = norm is None or 0 <= norm < math.inf
        if self._run.precision == "fp16":
            if not math.isfinite(result.loss):
                return None
            norm_is_fine = True
        elif outcome.skipped and not result.left_out:
            norm_is_fine = False
        return judge_loss(self._health, state.recent_losses, result.loss, norm_is_fine=norm_is_fine)

    def _left_out(self, state: TrainingState, finding: Finding, step_sequences: int) -> TrainingState:
        in_a_row = state.bad_steps_in_a_row + 1
        if in_a_row > self._health.max_bad_steps:
            why = f"{in_a_row} steps in a row would be left out; health.max_bad_steps is {in_a_row - 1}"
            raise self._ended(state, finding, why)
        self._tell(state.step, finding, skipped_sequences=step_sequences)
        return replace(state, bad_steps_in_a_row=in_a_row)

    def _gone_back(self, bad: TrainingState, finding: Finding, step_sequences: int) -> TrainingState:
        if bad.rollbacks >= self._health.max_rollbacks:
            why = f"the run has gone back {bad.rollbacks} times; health.max_rollbacks is {self._health.max_rollbacks}"
            raise self._ended(bad, finding, why)
        state = self._checkpoints.go_back(bad)
        if state is None:
            raise self._ended(bad, finding, "there is no checkpoint to go back to yet")
        sequences = (bad.step - state.step) * step_sequences
        self._tell(bad.step, finding, back_to_step=state.step, skipped_sequences=sequences)
        return state

    def _tell(
        self, step: int, finding: Finding, *, back_to_step: int | None = None, skipped_sequences: int = 0
    ) -> None:
        self._reporter.write(
            FaultRecord(
                step=step,
                kind=finding.kind,
                remedy=finding.remedy,
                reason=finding.words,
                back_to_step=back_to_step,
                skipped_sequences=skipped_sequences,
            )
        )
        done = {
            "warn": "trained on (health.on_spike=warn)",
            "skip": "this step is left out",
            "rollback": f"back to step {back_to_step}, and on behind the {skipped_sequences} sequences since",
        }[finding.remedy]
        self._reporter.note(f"WARNING, step {step}: {finding.words}; {done}")

    def _as_asked(self, finding: Finding) -> str:
        if finding.kind == "spike":
            return "health.on_spike is stop"
        return "Training cannot recover from numbers that are not finite"

    def _ended(self, state: TrainingState, finding: Finding, why: str) -> MegatuneError:
        """What to end the run with, on all ranks; a save that was begun from good numbers is finished before."""
        failed = ""
        try:
            self._checkpoints.saves.finish(state)
        except SaveError as error:
            failed = f" Beside that, {error}"
        newest = self._checkpoints.last
        go_on = (
            f"start again to go on from {newest} (what has changed needs --allow-change)"
            if newest
            else "start again"
        )
        return MegatuneError(
            f"step {state.step}: {finding.words}. {why}; nothing was saved of it. Lower train.learning_rate (now "
            f"{self._run.train.learning_rate:g}) or look at the data of this step, then {go_on}.{failed}"
        )
