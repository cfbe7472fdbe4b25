"""A suite file: the cases that are timed side by side."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import megatune
from megatune.errors import ConfigError
from megatune.launch.devices import count_cpus, count_gpus

SUITES = Path(megatune.__file__).parent.parent / "benchmarks" / "suites"
"""Where the suites of a checkout are; an installed package has none, and takes files."""


_RANKS = "{ranks}"
MOST_RANKS = 1024
"""More than the devices of any one machine."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


LARGEST = "largest-that-fits"


class Work(_Strict):
    """What every case of a suite trains on, unless it says otherwise."""

    model: str = Field(
        description=f"A folder of benchmarks/models, or any folder with a config.json. {LARGEST}: the largest of "
        "benchmarks/models that the planner says fits on this machine beside the overrides of the case."
    )
    initialize: Literal["pretrained", "random"] = "pretrained"
    """pretrained: weights are drawn once and stored, and all programs begin from them. random: megatune draws them, for
    models that would take minutes to write."""
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
    ranks: Literal["up-to-devices"] | None = None
    """Run with 1, 2, 4 ... ranks up to the GPUs of this machine, or its cores and at least 2. {ranks} becomes `1 rank`,
    `2 ranks` ... in the name, and the number alone in `program`. None: as `work` says."""
    min_ranks: int = Field(1, ge=1)
    """Of `ranks`, the first."""
    rows_a_step: int | None = Field(None, ge=1)
    """Of all ranks, in place of work.micro_batch: numbers of `ranks` that do not divide it are left out."""
    group: str = ""
    """Only cases of one group are compared with each other."""
    same_loss: Literal["all", "first", "none"] = "all"
    """Steps whose loss must be that of the others: a program that does other work is not compared."""

    def over_ranks(self, num_devices: int) -> Iterator["Case"]:
        """The case for each number of ranks that `num_devices` allow; itself where it does not ask for that."""
        if self.ranks is None:
            yield self
            return
        counts = [2**power for power in range(num_devices.bit_length()) if 2**power >= self.min_ranks]
        for count in counts:
            if self.rows_a_step is None or self.rows_a_step % count == 0:
                yield self._with_ranks(count)

    def _with_ranks(self, count: int) -> "Case":
        rows = {} if self.rows_a_step is None else {"micro_batch": self.rows_a_step // count}
        words = "1 rank" if count == 1 else f"{count} ranks"
        program = self.program and tuple(word.replace(_RANKS, str(count)) for word in self.program)
        return self.model_copy(
            update={
                "name": self.name.replace(_RANKS, words),
                "program": program,
                "work": self.work if program else {**self.work, "ranks": count, **rows},
                "ranks": None,
                "rows_a_step": None,
            }
        )


class Suite(_Strict):
    """Cases, and how often each is run: in rounds, one after another, so that a busy hour hits all."""

    about: str
    work: Work | None = None
    rounds: int = Field(3, ge=1)
    baseline: str | None = None
    """The case of each group that the others are compared with; of a case with `ranks`, its name at one number."""
    losses_of: str | None = None
    """The case of each group whose losses the others must have, where the baseline has them only at first."""
    cases: tuple[Case, ...] = ()
    matrix: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Keys of `work`, each with several values: all cases are run for every combination, a group each."""

    def expanded(self, num_devices: int | None = None) -> tuple[Case, ...]:
        """The cases with numbers of ranks and the matrix worked in.

        num_devices: GPUs, or cores; None: those of this machine.
        """
        if num_devices is None and any(case.ranks for case in self.cases):
            num_devices = count_gpus() or max(2, count_cpus())
        return self.over_matrix([one for case in self.cases for one in case.over_ranks(num_devices or 1)])

    def over_matrix(self, cases: Sequence[Case]) -> tuple[Case, ...]:
        """`cases` for every combination of the matrix, a group each."""
        if not self.matrix:
            return tuple(cases)
        found = []
        for values in product(*self.matrix.values()):
            changes = dict(zip(self.matrix, values, strict=True))
            group = ", ".join(f"{key}={_short(value)}" for key, value in changes.items())
            found += [
                case.model_copy(
                    update={"work": {**changes, **case.work}, "group": f"{case.group} {group}".strip()}
                )
                for case in cases
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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
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
        if case.ranks and _RANKS not in case.name:
            problems.append(f"case {case.name!r} has `ranks`: its name must hold {_RANKS}.")
        if case.ranks is None and case.rows_a_step is not None:
            problems.append(
                f"case {case.name!r} has rows_a_step, which belongs to `ranks`; give work.micro_batch."
            )
    of_models = [fault for case in suite.over_matrix(suite.cases) for fault in _faults_of_models(suite, case)]
    problems += dict.fromkeys(of_models)  # a fault of several combinations is told once
    places = [(case.group, case.name) for case in suite.expanded()]
    problems += [
        f"two cases are called {name!r}."
        for group, name in sorted(set(places))
        if places.count((group, name)) > 1
    ]
    return [*problems, *_faults_of_names(suite)]


def _faults_of_names(suite: Suite) -> Iterator[str]:
    """A baseline that only a larger machine runs is no fault: a suite file is for all."""
    known = {case.name for case in suite.expanded(MOST_RANKS)}
    here = dict.fromkeys(case.name for case in suite.expanded())
    for key in ("baseline", "losses_of"):
        name = getattr(suite, key)
        if name is not None and name not in known:
            yield f"{key} = {name!r} is none of the cases: {', '.join(map(repr, here))}."


def _faults_of_models(suite: Suite, case: Case) -> Iterator[str]:
    asked = {**(suite.work.model_dump() if suite.work else {}), **case.work}
    if case.train is None and not case.program and asked.get("initialize") == "random":
        yield f"case {case.name!r} is a peer, which begins from stored weights: leave out work.initialize."
    if case.train is None and not case.program and asked.get("model") == LARGEST:
        yield f"case {case.name!r} is a peer, which the planner does not know: work.model = {LARGEST} is for `train`."


def _problems(error: ValidationError) -> list[str]:
    """A line each; a problem between fields stands at no key."""
    return [": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in error.errors()]


def _short(value: object) -> str:
    return value.rpartition("/")[2] if isinstance(value, str) else str(value)
