"""The space file: which keys of the run file a search varies, and between which values."""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from megatune.config.aliases import BY_PLACE
from megatune.config.document import format_value, read_document
from megatune.config.load import LoadedRun, leaves, load_run
from megatune.config.run import run_schema
from megatune.errors import ConfigError

_MAX_BYTES = 2**20
_MAX_GRID = 10_000
_MAX_PROBES = 1000
_INSIDE = 0.382  # of a range: a point that is no round number
_RANGE_KEYS = {"low", "high", "log", "step"}

_OTHER_LOSS = "the trials' validation losses could not be compared"
_REFUSED = {
    "train.output_dir": "each trial gets a folder of its own",
    "train.logging_steps": "it changes nothing that is learnt",
    "checkpoint": "a search saves and resumes its trials itself",
    "launch": "`megatune tune` is for the layout of a run",
    "parallel": "`megatune tune` is for the layout of a run",
    "slurm": "it belongs to the job, not to the trial",
    "health": "it decides what becomes of a failing run, not what is learnt",
    "report_to": "it changes nothing that is learnt",
    "evaluate": _OTHER_LOSS,
    "data.validation": _OTHER_LOSS,
    "data.task": _OTHER_LOSS,
    "data.max_seq_length": _OTHER_LOSS,
    "data.packing": _OTHER_LOSS,
    "data.completion_only_loss": _OTHER_LOSS,
    "model.model_name_or_path": _OTHER_LOSS,
    "model.tokenizer": _OTHER_LOSS,
    "model.revision": _OTHER_LOSS,
}


@dataclass(frozen=True, kw_only=True)
class Choices:
    """A key and the values to choose from, each as the text of an override."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Range:
    """A key and the numbers it may take, both ends among them."""

    key: str
    low: float
    high: float
    log: bool = False
    """Draw the logarithm evenly, not the number."""
    step: float | None = None
    """Only low, low + step, low + 2 steps, ..."""
    whole: bool = False
    """Whole numbers only."""

    def points(self) -> list[str] | None:
        """All values as texts of overrides; None where they cannot be counted."""
        step = self.step or (1.0 if self.whole else None)
        if step is None or self.log:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self.text(self.low + index * step) for index in range(count)]

    def text(self, number: float) -> str:
        """A value as the text of an override."""
        return format_value(int(number) if self.whole else float(f"{number:.12g}"))


Axis = Choices | Range
Point = dict[str, str]
"""Key -> text of the override."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """The axes in the order of the file."""

    axes: tuple[Axis, ...]

    def as_object(self) -> list[dict[str, Any]]:
        """As JSON holds it, for the journal; `from_object` reads it back."""
        return [
            {"key": axis.key, "values": list(axis.values)} if isinstance(axis, Choices) else asdict(axis)
            for axis in self.axes
        ]

    @classmethod
    def from_object(cls, axes: Sequence[Mapping[str, Any]]) -> "Space":
        return cls(
            axes=tuple(
                Choices(key=axis["key"], values=tuple(axis["values"])) if "values" in axis else Range(**axis)
                for axis in axes
            )
        )

    def grid(self) -> list[Point]:
        """Every point. Raises ConfigError where an axis cannot be counted, or there are too many."""
        problems, values = [], list[list[str]]()
        for axis in self.axes:
            points = list(axis.values) if isinstance(axis, Choices) else axis.points()
            if points is None:
                problems.append(
                    f"{axis.key} is a range without a step, which no grid can go through; list its values, "
                    "give `step` (without log), or use --sampler random."
                )
            values.append(points or [])
        count = math.prod(len(points) for points in values)
        if not problems and count > _MAX_GRID:
            problems.append(
                f"the grid has {count} points, more than {_MAX_GRID}; use --sampler random or tpe."
            )
        if problems:
            raise ConfigError(problems, source="the space")
        return [self._point(combination) for combination in itertools.product(*values)]

    def probes(self) -> list[Point]:
        """Ends, an inner point and choices of all axes in all combinations; a fixed sample of many."""
        values = [list(_probes(axis)) for axis in self.axes]
        count = math.prod(len(points) for points in values)
        if count <= _MAX_PROBES:
            return [self._point(combination) for combination in itertools.product(*values)]
        draw = random.Random(0)
        return [self._point([draw.choice(points) for points in values]) for _ in range(_MAX_PROBES)]

    def _point(self, values: Sequence[str]) -> Point:
        return {axis.key: value for axis, value in zip(self.axes, values, strict=True)}


def overrides_of(point: Point) -> list[str]:
    """A point as arguments of `megatune train`."""
    return [f"{key}={value}" for key, value in point.items()]


def load_space(path: Path, base: LoadedRun) -> Space:
    """Read the space file `path` for the run `base`. Raises ConfigError with every problem of it at once.

    Whether its values make valid runs is `check_points`' question.
    """
    source = str(path)
    document = read_document(_read(path), source=source)
    problems: list[str] = []
    known = {".".join(key): value for key, value in leaves(base.run)}
    axes = []
    for key, asked in _flat(document.values, known):
        line = document.lines.get((key,)) or document.lines.get(tuple(key.split(".")))
        problem = _key_problem(key, known)
        axis = None if problem else _axis(key, asked, problems)
        if problem:
            problems.append(problem + (f" (line {line})" if line else ""))
        if axis is not None:
            axes.append(axis)
    twice = sorted({axis.key for axis in axes if [other.key for other in axes].count(axis.key) > 1})
    problems += [f"{key} is given twice; keep one." for key in twice]
    if problems:
        raise ConfigError(problems, source=source)
    return Space(axes=tuple(axes))


def check_points(
    points: Sequence[Point],
    run_file: Path,
    overrides: Sequence[str],
    *,
    source: str,
    check: Callable[[LoadedRun], None],
) -> None:
    """Raise ConfigError with what is wrong with the runs of `points`, each problem once with its first point."""
    problems: dict[str, str] = {}
    for point in points:
        try:
            check(load_run(run_file, [*overrides, *overrides_of(point)]))
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem.replace(" (command line)", ""), ", ".join(overrides_of(point)))
    if problems:
        raise ConfigError(
            [f"{problem} (with {example})" for problem, example in problems.items()], source=source
        )


def _read(path: Path) -> str:
    source = str(path)
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError([f"the space file cannot be read: {reason}."], source=source) from error
    if not text.strip():
        example = "`train.learning_rate: {low: 1e-6, high: 1e-3, log: true}`"
        raise ConfigError([f"the space is empty; name a key and its values, as in {example}."], source=source)
    return text


def _flat(values: Mapping[str, Any], known: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Dotted keys with what is asked of them; sections may be opened as in a run file."""
    sections = {key.partition(".")[0] for key in known if "." in key}
    for name, value in values.items():
        if name in sections and isinstance(value, dict):
            yield from ((f"{name}.{inner}", asked) for inner, asked in value.items())
        else:
            yield name, value


def _key_problem(key: str, known: Mapping[str, object]) -> str | None:
    for refused, reason in _REFUSED.items():
        if key == refused or key.startswith(f"{refused}."):
            return f"{key} cannot be searched: {reason}."
    if key in known or key == "data.train":
        return None
    if key in BY_PLACE and BY_PLACE[key].key in known:
        return f"{key} is called {BY_PLACE[key].key} here; use that name."
    tails = {name.rpartition(".")[2]: name for name in known}
    near = get_close_matches(key, known, n=1) or [
        tails[name] for name in get_close_matches(key.rpartition(".")[2], tails, n=1)
    ]
    hint = f" Did you mean {near[0]}?" if near else " `megatune init` prints a run file with all its keys."
    return f"the run file has no key {key!r}.{hint}"


def _axis(key: str, asked: object, problems: list[str]) -> Axis | None:
    if isinstance(asked, list):
        values = tuple(format_value(value) for value in asked)
        if len(values) < 2 or len(set(values)) < len(values):
            problems.append(f"{key} is {format_value(asked)}; a list needs two values or more, none twice.")
            return None
        return Choices(key=key, values=values)
    if isinstance(asked, dict) and asked.keys() >= {"low", "high"}:
        return _range(key, asked, problems)
    problems.append(
        f"{key} is {format_value(asked)}; it must be a list of values, as [1, 2], or a range, as "
        "{low: 1e-6, high: 1e-3, log: true}."
    )
    return None


def _range(key: str, asked: Mapping[str, Any], problems: list[str]) -> Range | None:
    found = _range_problems(asked)
    problems += [f"{key}: {problem}" for problem in found]
    if found:
        return None
    given = [asked["low"], asked["high"], *([asked["step"]] if asked.get("step") is not None else [])]
    return Range(
        key=key,
        low=asked["low"],
        high=asked["high"],
        log=asked.get("log", False),
        step=asked.get("step"),
        whole=all(isinstance(number, int) for number in given) and not _takes_fractions(key),
    )


def _takes_fractions(key: str) -> bool:
    """Whether the run file's schema lets the key hold any number, as it does for a learning rate."""
    schema = run_schema()
    section, _, name = key.partition(".")
    found = schema["properties"].get(section, {})
    if name:
        found = schema["$defs"][found["$ref"].rpartition("/")[2]]["properties"].get(name, {})
    return "number" in {option.get("type") for option in [found, *found.get("anyOf", [])]}


def _range_problems(asked: Mapping[str, Any]) -> list[str]:
    problems = [
        f"a range has no {key!r}; it takes low, high, log and step."
        for key in sorted(asked.keys() - _RANGE_KEYS)
    ]
    numbers = {key: asked[key] for key in ("low", "high", "step") if asked.get(key) is not None}
    problems += [
        f"{key} is {format_value(number)}; it must be a finite number."
        for key, number in numbers.items()
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number)
    ]
    problems += [f"{key} is missing." for key in ("low", "high") if key not in numbers]
    if not isinstance(asked.get("log", False), bool):
        problems.append(f"log is {format_value(asked['log'])}; it must be true or false.")
    if problems:
        return problems
    low, high, step, log = asked["low"], asked["high"], asked.get("step"), asked.get("log", False)
    if low >= high:
        problems.append(f"low is {low} and high is {high}; low must be below high.")
    if step is not None and not 0 < step <= high - low:
        problems.append(f"step is {step}; it must be above 0 and fit between {low} and {high}.")
    if log and low <= 0:
        problems.append(f"low is {low}; a range with log must begin above 0.")
    if log and step is not None:
        problems.append("log and step exclude each other; keep one, or list the values.")
    return problems


def _probes(axis: Axis) -> Iterator[str]:
    if isinstance(axis, Choices):
        yield from axis.values
        return
    points = axis.points()
    yield axis.text(axis.low)
    yield axis.text(axis.high) if points is None else points[-1]
    if axis.log:
        yield axis.text(axis.low * (axis.high / axis.low) ** _INSIDE)
    elif points is None:
        yield axis.text(axis.low + (axis.high - axis.low) * _INSIDE)
    elif len(points) > 2:
        yield points[len(points) // 2]
