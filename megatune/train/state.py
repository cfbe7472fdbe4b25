"""What all ranks share between two steps."""

import math
from dataclasses import asdict, dataclass, replace

from megatune.data.sampler import Position
from megatune.train.stopping import Patience


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """A checkpoint's `training.json`."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    position: Position = Position()
    patience: Patience
    evaluated_at: int | None = None
    """The step after which the last evaluation was made."""
    eval_value: float | None = None
    """The metric of `patience` there; None when it was not finite."""
    best_step: int | None = None
    """The saved step with the best held-out metric; None before a save at an evaluated step."""
    best_value: float | None = None
    """The metric there."""
    skipped_steps: int = 0
    tokens: int = 0
    recent_losses: tuple[float, ...] = ()
    """What a spike is told by: see `train/health.py`."""
    bad_steps_in_a_row: int = 0
    """Steps left out by `health` at the end of those done."""
    rollbacks: int = 0

    def epoch(self, num_rows: int) -> float:
        """Passes over data of `num_rows` rows, as a fraction."""
        return self.position.epoch + self.position.cursor / num_rows

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, object], patience: Patience) -> "TrainingState":
        """`patience`: by the present run file, which may differ from the saved one."""
        position = Position(**stored["position"])  # type: ignore[arg-type]
        saved = Patience(**stored["patience"])  # type: ignore[arg-type]
        losses = tuple(stored.get("recent_losses", ()))  # type: ignore[arg-type,var-annotated]
        going_on = patience.going_on_from(saved)
        state = cls(
            **{**stored, "position": position, "patience": going_on or patience, "recent_losses": losses}  # type: ignore[arg-type]
        )
        return state if going_on is not None else state.without_scores(patience)

    def within(self, num_rows: int) -> "TrainingState":
        """The state for data of `num_rows` rows: a cursor beyond them begins the next epoch."""
        if self.position.cursor < num_rows:
            return self
        return replace(self, position=Position(self.position.epoch + 1, 0))

    def evaluated(self, value: float | None) -> "TrainingState":
        """The state after an evaluation; `value` of the metric, None where there is none."""
        finite = value if value is not None and math.isfinite(value) else None
        return replace(self, patience=self.patience.after(value), evaluated_at=self.step, eval_value=finite)

    def saved(self) -> "TrainingState":
        """The state that a checkpoint of this step holds, which is the best one if its metric is."""
        if self.evaluated_at != self.step or not self.patience.is_better(self.eval_value, self.best_value):
            return self
        return replace(self, best_step=self.step, best_value=self.eval_value)

    def without_scores(self, patience: Patience) -> "TrainingState":
        """What was scored so far counts no more: `patience` begins."""
        return replace(self.without_best(), patience=patience, evaluated_at=None, eval_value=None)

    def without_best(self) -> "TrainingState":
        """The best checkpoint is not there any more."""
        return replace(self, best_step=None, best_value=None)
