"""Candidates: what a trial can be of. `space` makes them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from megatune.config import Run, load_run, path_override
from megatune.files import write_text_atomic
from megatune.plan.assess import Question
from megatune.plan.ds_config import read_policy
from megatune.plan.layout import Layout
from megatune.plan.layout_keys import LAYOUT_KEYS
from megatune.plan.model_config import read_model_config
from megatune.plan.question import Machine, make_question
from megatune.tune.layouts.knobs import AS_IT_IS, POLICY, RANKS

Values = dict[str, str]
"""Key of a knob -> value, as the text of an override."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One setting of all knobs that are varied, and what the planner expects of it."""

    number: int
    values: Values
    layout: Layout
    planned_s: float | None
    """Seconds a step before anything was measured; None where the planner knows no times."""
    planned_bytes: int
    """Of one device."""

    @property
    def devices(self) -> int:
        return self.layout.num_devices

    def as_object(self) -> dict[str, Any]:
        """As JSON holds it; `from_object` reads it back."""
        return asdict(self)

    @classmethod
    def from_object(cls, entry: Mapping[str, Any]) -> "Candidate":
        return cls(**{**entry, "layout": Layout(**entry["layout"])})


_IN_LAYOUT = {*LAYOUT_KEYS, RANKS}


def shorter(key: str) -> str:
    """`reduce_bucket_size` for `deepspeed:zero_optimization.reduce_bucket_size`."""
    return key.removeprefix(POLICY).rpartition(".")[2]


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The run that is tuned: its file, what stands behind it, and where it will be."""

    run_file: Path
    overrides: Sequence[str]
    machine: Machine

    def load(self, values: Mapping[str, str] | None = None) -> Run:
        """The run with the values of knobs. Raises ConfigError."""
        return load_run(self.run_file, [*self.overrides, *overrides_of(values or {})]).run

    def policy(self, run: Run, values: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The run's policy with the values of knobs that are its keys."""
        return policy_with(read_policy(run.deepspeed), values or {})

    def machine_of(self, values: Mapping[str, str]) -> Machine:
        """The machine with as many ranks as the values say."""
        ranks = values.get(RANKS)
        return self.machine if ranks is None else replace(self.machine, ranks_per_node=int(ranks))

    def question(self, values: Mapping[str, str]) -> Question:
        """What the planner is asked with the values of side knobs. Raises what `make_question` does."""
        run = self.load(values)
        return make_question(run, read_model_config(run), self.machine_of(values), self.policy(run, values))


@dataclass(frozen=True, kw_only=True)
class Space:
    """All candidates; the first is the run's own layout, the reference of all others."""

    candidates: tuple[Candidate, ...]
    varied: Mapping[str, Sequence[str]]
    """Key -> values among the candidates, of the keys that have several."""
    left_out: Sequence[str]
    """Whole kinds of layouts that are not tried, with the reason."""

    def describe(self, one: Candidate) -> str:
        """The layout, and in what else the candidate differs from the reference."""
        own = self.candidates[0].values
        sides = [
            f"{shorter(key)}={text}"
            for key, text in one.values.items()
            if key not in _IN_LAYOUT and text != own[key]
        ]
        return " ".join([str(one.layout), *sides])


def overrides_of(values: Mapping[str, str]) -> list[str]:
    """The values that the run file takes, as arguments of `megatune train`."""
    return [f"{key}={text}" for key, text in values.items() if not key.startswith(POLICY)]


def is_set_in_policy(key: str, text: str) -> bool:
    """Whether a value stands in the DeepSpeed policy of its candidate."""
    return key.startswith(POLICY) and text != AS_IT_IS


def write_policy(tuned: Tuned, values: Mapping[str, str], path: Path) -> list[str]:
    """Write the policy with the values that are its keys; the override that names it. Where none is, neither."""
    if not any(is_set_in_policy(key, text) for key, text in values.items()):
        return []
    write_text_atomic(path, json.dumps(tuned.policy(tuned.load(), values), indent=2) + "\n")
    return [path_override("deepspeed", path)]


def policy_with(policy: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    """A copy of a DeepSpeed policy with the values that are its keys; AS_IT_IS leaves a key alone."""
    merged: dict[str, Any] = {key: dict(v) if isinstance(v, dict) else v for key, v in policy.items()}
    for key, text in values.items():
        if is_set_in_policy(key, text):
            section, _, name = key.removeprefix(POLICY).partition(".")
            merged[section] = {**merged.get(section, {}), name: int(text)}
    return merged
