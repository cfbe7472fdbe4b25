"""Which settings a checkpoint may be gone on with: what may change freely, what only on request, what never.

The table is in docs/checkpoints.md. A setting that is not named here may change freely: it decides
how and where the run is computed, watched and saved, and not what is learnt.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatune.checkpoint.weights_index import describe_weights
from megatune.config import BatchShape, Run
from megatune.config.document import format_value
from megatune.config.load import leaves
from megatune.data.prepared import PreparedSet
from megatune.errors import ResumeError
from megatune.model.build import BuiltModel

_NO_PART_OF_A_MODEL = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")

NEVER = frozenset({"parameters", "train.optimizer"})
"""Without these the saved tensors mean nothing."""

ON_REQUEST = frozenset(
    {
        "prepared data",
        "sequences per step",
        "model",
        "precision",
        "train.seed",
        "train.learning_rate",
        "train.lr_scheduler_type",
        "train.warmup_steps",
        "train.weight_decay",
        "train.adam_beta1",
        "train.adam_beta2",
        "train.adam_epsilon",
        "train.momentum",
        "train.max_grad_norm",
    }
)
"""With these changed the run goes on, and not as it would have."""

_OF_ONE_START = frozenset({"train.output_dir", "checkpoint.resume", "checkpoint.allow_change"})
"""Where and how this start was made: no part of the run."""


@dataclass(frozen=True)
class Change:
    """One setting that differs between a checkpoint and the run that is to go on with it."""

    name: str
    saved: str
    now: str

    def __str__(self) -> str:
        return f"{self.name}: saved {self.saved}, this run {self.now}"


def run_identity(run: Run, built: BuiltModel, batch: BatchShape, train: PreparedSet) -> dict[str, str]:
    """Every setting of the run and the facts that follow from them, as text. The names are what a user changes."""
    settings = {".".join(key): format_value(value) for key, value in leaves(run)}
    facts = {
        "prepared data": train.fingerprint,
        "sequences per step": str(batch.global_sequences),
        "model": _config_hash(built),
        "parameters": parameters_hash(describe_weights(built)),
    }
    return facts | {name: value for name, value in settings.items() if name not in _OF_ONE_START}


def identity_hash(identity: Mapping[str, str]) -> str:
    """One short value for all of them."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:16]


def changes(saved: Mapping[str, str], now: Mapping[str, str]) -> list[Change]:
    """All that differs, in the order of the run file."""
    names = [*now, *(name for name in saved if name not in now)]
    return [
        Change(name, saved.get(name, "n/a"), now.get(name, "n/a"))
        for name in names
        if saved.get(name) != now.get(name)
    ]


def refuse_another_run(
    found: Path, saved: Mapping[str, str], now: Mapping[str, str], *, allow_change: bool
) -> list[Change]:
    """What has changed since `found` was saved, when the run may go on with it.

    Raises ResumeError with all differences that forbid it, and how to go on.
    """
    different = changes(saved, now)
    never = [change for change in different if change.name in NEVER]
    refused = never + [change for change in different if change.name in ON_REQUEST and not allow_change]
    if not refused:
        return different
    listed = "".join(f"\n  - {change}" for change in refused)
    way = (
        "Put the saved values back, use another train.output_dir, or checkpoint.resume=none to start again."
        if never
        else "Put the saved values back, or go on with the new ones: --allow-change (checkpoint.allow_change=true). "
        "Or start again: another train.output_dir, or checkpoint.resume=none."
    )
    raise ResumeError(
        f"{found} was saved by another run, which this one cannot go on with exactly:{listed}\n{way}"
    )


def _config_hash(built: BuiltModel) -> str:
    """A short hash of config.json: dropout, norms, rotary angles, ..."""
    config = json.loads((built.source.folder / "config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in _NO_PART_OF_A_MODEL}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def parameters_hash(weights: Mapping[str, Mapping[str, Any]]) -> str:
    """A short hash of all parameters' names and whole shapes. `weights`: see `describe_weights`."""
    shapes = {name: entry["shape"] for name, entry in weights.items()}
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()[:16]
