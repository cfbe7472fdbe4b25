"""Many runs from one command: several run files, or one with a sweep over some of its values."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from megatune.config import load_run
from megatune.errors import ConfigError
from megatune.launch.slurm.request import RunToSubmit

_MAX_RUNS = 1001  # MaxArraySize, Slurm's default
_UNSAFE = re.compile(r"[^\w.+-]+")
_SWEEP = re.compile(r"(?P<key>[A-Za-z_][\w.-]*)=(?P<values>.+)")


def load_one(run_file: Path, overrides: Sequence[str]) -> RunToSubmit:
    """The run of one file. Raises ConfigError as `load_run` does."""
    loaded = load_run(run_file, overrides)
    return RunToSubmit(loaded=loaded, folder=Path(loaded.run.train.output_dir).absolute())


def load_array(patterns: Sequence[Path], overrides: Sequence[str]) -> list[RunToSubmit]:
    """The runs of several files, each with `overrides`. A pattern that no shell has expanded is expanded.

    Raises ConfigError with the problems of all files at once.
    """
    files, problems = [], []
    for pattern in patterns:
        inside = str(pattern.relative_to(pattern.anchor))
        found = [pattern] if pattern.exists() else sorted(Path(pattern.anchor).glob(inside))
        files += found
        if not found:
            problems.append(f"--array {pattern}: there is no such file.")
    return _load_all([(file, overrides) for file in dict.fromkeys(files)], problems, "--array")


def load_sweep(run_file: Path, sweeps: Sequence[str], overrides: Sequence[str]) -> list[RunToSubmit]:
    """A run for each combination of the values of `sweeps` (`key.sub=a,b,c`).

    Each run has a folder of its own below train.output_dir, named after its values. Raises ConfigError.
    """
    problems: list[str] = []
    axes = [axis for text in sweeps if (axis := _axis(text, problems))]
    keys = [key for key, _ in axes]
    problems += [
        f"{key} is given {keys.count(key)} times: put all of its values behind one, as {key}=a,b,c."
        for key in dict.fromkeys(keys)
        if keys.count(key) > 1
    ]
    if problems:
        raise ConfigError(problems, source="--sweep")
    base = load_run(run_file, overrides).run.train.output_dir
    jobs, taken = [], dict[str, str]()
    for values in itertools.product(*([f"{key}={value}" for value in axis] for key, axis in axes)):
        name = "_".join(folder_part(value) for value in values)
        if name in taken:
            problems.append(f"{', '.join(values)} and {taken[name]} would share the folder {base / name}.")
        taken[name] = ", ".join(values)
        jobs.append((run_file, [*overrides, *values, f'train.output_dir="{_escaped(base / name)}"']))
    return _load_all(jobs, problems, "--sweep")


def folder_part(override: str) -> str:
    """A piece of a folder's name for one value of a sweep.

    >>> folder_part("train.learning_rate=1e-4")
    'learning_rate-1e-4'
    """
    key, _, value = override.partition("=")
    return f"{key.rpartition('.')[2]}-{_UNSAFE.sub('-', value).strip('-.') or 'empty'}"


def _escaped(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')


def _axis(text: str, problems: list[str]) -> tuple[str, list[str]] | None:
    found = _SWEEP.fullmatch(text)
    if found is None:
        problems.append(f"{text!r} must be key.sub=a,b,c, as in train.learning_rate=1e-5,2e-5.")
        return None
    if found["key"] in ("train.output_dir", "output_dir"):
        problems.append(f"{text!r}: each run of a sweep gets a folder below train.output_dir by itself.")
        return None
    values = split_values(found["values"])
    if "" in values or len({_as_number(value) for value in values}) != len(values):
        problems.append(f"{text!r} has an empty value, or one twice.")
        return None
    return found["key"], values


def _as_number(value: str) -> float | str:
    """1e-4 and 1.0e-4 are the same."""
    try:
        return float(value)
    except ValueError:
        return value


def split_values(text: str) -> list[str]:
    """The values of a sweep: what commas part, but not those inside brackets or braces.

    >>> split_values("1,[2,3],{a: 4, b: 5}")
    ['1', '[2,3]', '{a: 4, b: 5}']
    """
    values, depth = [""], 0
    for char in text:
        depth += (char in "[{") - (char in "]}")
        if char == "," and depth == 0:
            values.append("")
        else:
            values[-1] += char
    return [value.strip() for value in values]


def _load_all(
    jobs: Sequence[tuple[Path, Sequence[str]]], problems: list[str], source: str
) -> list[RunToSubmit]:
    if len(jobs) > _MAX_RUNS:
        problems.append(f"{len(jobs)} runs; Slurm takes arrays of at most {_MAX_RUNS} as it comes.")
        raise ConfigError(problems, source=source)
    runs = []
    for file, overrides in jobs:
        try:
            runs.append(load_one(file, overrides))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), source=source)
    return runs
