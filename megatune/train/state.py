"""What all ranks share between two steps, and what a checkpoint must agree on with the run that loads it."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megatune import checkpoint
from megatune.config import BatchShape, Run
from megatune.data.prepared import PreparedSet
from megatune.data.sampler import Position
from megatune.errors import ResumeError
from megatune.model.build import BuiltModel
from megatune.train.stopping import Patience

_NO_PART_OF_A_MODEL = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """A checkpoint's `training.json`."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    position: Position = Position()
    patience: Patience
    evaluated_at: int | None = None
    """The step after which the last evaluation was made."""
    eval_loss: float | None = None
    """Its loss; None when it was not finite."""
    best_step: int | None = None
    """The saved step with the lowest held-out loss; None before a save at an evaluated step."""
    best_loss: float | None = None
    """The held-out loss there."""
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

    def evaluated(self, loss: float | None) -> "TrainingState":
        """The state after an evaluation; `loss` None when the split has no target."""
        finite = loss if loss is not None and math.isfinite(loss) else None
        return replace(self, patience=self.patience.after(loss), evaluated_at=self.step, eval_loss=finite)

    def saved(self) -> "TrainingState":
        """The state that a checkpoint of this step holds, which is the best one if its loss is lowest."""
        if self.evaluated_at != self.step or self.eval_loss is None:
            return self
        if self.best_loss is not None and self.eval_loss >= self.best_loss:
            return self
        return replace(self, best_step=self.step, best_loss=self.eval_loss)

    def without_best(self) -> "TrainingState":
        """The best checkpoint is not there any more."""
        return replace(self, best_step=None, best_loss=None)


def run_identity(run: Run, built: BuiltModel, batch: BatchShape, train: PreparedSet) -> dict[str, str | int]:
    """What must be the same for a run to go on exactly; the names are what a user changes."""
    return {
        "prepared data": train.fingerprint,
        "sequences per step": batch.global_sequences,
        "train.seed": run.train.seed,
        "train.optimizer": run.train.optimizer,
        "precision": run.precision,
        "model": _model_hash(built),
    }


def refuse_another_run(found: Path, saved: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Raise ResumeError that names both values of all that differs between `found` and this run."""
    differences = [
        f"{name}: saved {saved.get(name, 'n/a')}, this run {value}"
        for name, value in now.items()
        if saved.get(name) != value
    ]
    if differences:
        raise ResumeError(
            f"{found} is of another run, which this one cannot go on with exactly. {'; '.join(differences)}. Put "
            "the saved values back, use another train.output_dir, or checkpoint.resume=none to start again."
        )


def _model_hash(built: BuiltModel) -> str:
    """A short hash of config.json and of all parameters' names and whole shapes."""
    config = json.loads((built.source.folder / "config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in _NO_PART_OF_A_MODEL}
    shapes = {name: entry["shape"] for name, entry in checkpoint.describe_weights(built).items()}
    return hashlib.sha256(json.dumps([kept, shapes], sort_keys=True).encode()).hexdigest()[:16]
