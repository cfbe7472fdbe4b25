"""A suite file: the cases that are timed side by side."""

from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import megatune
from megatune.errors import ConfigError

SUITES = Path(megatune.__file__).parent.parent / "benchmarks" / "suites"
"""Where the suites of a checkout are; an installed package has none, and takes files."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Work(_Strict):
    """What every case of a suite trains on, unless it says otherwise."""

    model: str = Field(description="A folder of benchmarks/models, or any folder with a config.json.")
    rows: Literal["full", "mixed"] = "full"
    """full: every row is one document as long as max_seq_length. mixed: lengths as in fine-tuning sets."""
    max_seq_length: int = Field(256, ge=8)
    micro_batch: int = Field(2, ge=1)
    """Rows of a rank in a step, for a layout where every rank sees different ones."""
    ranks: int = Field(2, ge=1)
    """Of one machine; on nodes of a job as many as it has, whatever stands here."""
    nodes: int | None = Field(None, ge=1)
    """Of the job that the suite runs in (`--slurm`); None: all of them."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    warmup_steps: int = Field(2, ge=0)
    steps: int = Field(5, ge=1)
    learning_rate: float = Field(1e-4, ge=0)


class Case(_Strict):
    """One thing that is timed."""

    name: str
    train: tuple[str, ...] | None = None
    """`megatune train` with these overrides of the run file."""
    peer: str | None = None
    """A program of benchmarks/peers."""
    program: tuple[str, ...] | None = None
    """A script of benchmarks/ with arguments: it prints its own records, a JSON object a line."""
    work: dict[str, Any] = Field(default_factory=dict)
    """Keys of the suite's work that this case changes."""
    group: str = ""
    """Only cases of one group are compared with each other."""
    same_loss: Literal["all", "first", "none"] = "all"
    """Steps whose loss must be that of the others: a program that does other work is not compared."""


class Suite(_Strict):
    """Cases, and how often each is run: in rounds, one after another, so that a busy hour hits all."""

    about: str
    work: Work | None = None
    rounds: int = Field(3, ge=1)
    baseline: str | None = None
    """The case of each group that the others are compared with."""
    losses_of: str | None = None
    """The case of each group whose losses the others must have, where the baseline has them only at first."""
    cases: tuple[Case, ...] = ()
    matrix: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Keys of `work`, each with several values: all cases are run for every combination, a group each."""

    def expanded(self) -> tuple[Case, ...]:
        """The cases with the matrix worked in."""
        if not self.matrix:
            return self.cases
        found = []
        for values in product(*self.matrix.values()):
            changes = dict(zip(self.matrix, values, strict=True))
            group = ", ".join(f"{key}={_short(value)}" for key, value in changes.items())
            found += [
                case.model_copy(
                    update={"work": {**changes, **case.work}, "group": f"{case.group} {group}".strip()}
                )
                for case in self.cases
            ]
        return tuple(found)

    def work_of(self, case: Case) -> Work:
        """What `case` trains on. Raises ConfigError for a case that needs a work and has none."""
        base = self.work.model_dump() if self.work else {}
        try:
            return Work.model_validate({**base, **case.work})
        except ValidationError as error:
            raise ConfigError(_problems(error), source=f"work of {case.name}") from error


def load_suite(name: str, folder: Path = SUITES) -> Suite:
    """The suite called `name`, or in the file of that path. Raises ConfigError with all that is wrong."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none here"
        raise ConfigError(
            [
                f"there is no suite {name!r} ({path}: {error.strerror}). Suites: {known}; or give a file's path."
            ],
            source="megatune bench",
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError([f"it is not YAML: {error}"], source=str(path)) from error
    if not isinstance(values, dict):
        found = "it is empty" if values is None else f"it holds {repr(values)[:60]}"
        raise ConfigError(
            [f"{found}; a suite is a mapping with the keys {', '.join(Suite.model_fields)}."],
            source=str(path),
        )
    try:
        suite = Suite.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_problems(error), source=str(path)) from error
    problems = list(_faults(suite))
    if problems:
        raise ConfigError(problems, source=str(path))
    return suite


def _faults(suite: Suite) -> list[str]:
    problems = []
    for case in suite.cases:
        kinds = [kind for kind in ("train", "peer", "program") if getattr(case, kind) is not None]
        if len(kinds) != 1:
            problems.append(
                f"case {case.name!r} must have one of train, peer and program; it has {kinds or 'none'}."
            )
    places = [(case.group, case.name) for case in suite.expanded()]
    problems += [
        f"two cases are called {name!r}."
        for group, name in sorted(set(places))
        if places.count((group, name)) > 1
    ]
    names = [case.name for case in suite.cases]
    for key in ("baseline", "losses_of"):
        name = getattr(suite, key)
        if name is not None and name not in names:
            problems.append(f"{key} = {name!r} is none of the cases: {', '.join(names)}.")
    return problems


def _problems(error: ValidationError) -> list[str]:
    """A line each; a problem between fields stands at no key."""
    return [": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in error.errors()]


def _short(value: object) -> str:
    return value.rpartition("/")[2] if isinstance(value, str) else str(value)
