"""The run file that `megatune init` writes, drawn from the models: each key, what it is, its default."""

import textwrap
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from megatune.config.document import format_value
from megatune.config.fields import key_of
from megatune.config.run import Run
from megatune.config.sections import TASK_ROWS
from megatune.config.slurm import SlurmSection
from megatune.config.tokenizer import TokenizerSection
from megatune.errors import ConfigError

_WIDTH = 100
# Optional, yet wanted in nearly every run.
_SHOWN = frozenset({"data.validation"})

_OFF: dict[str, type[BaseModel]] = {"slurm": SlurmSection, "tokenizer": TokenizerSection}
"""Off as a whole: the presence of the section asks for what it is about."""


def initial_run_file(task: str) -> str:
    """A commented run file for `task`, complete but for the paths. Raises ConfigError for an unknown task.

    Keys without a default are commented out, with an example.
    """
    if task not in TASK_ROWS:
        raise ConfigError([f"there is no task {task!r}; use one of {', '.join(TASK_ROWS)}"], source="init")
    lines = [
        "# A run of megatune. Change the paths; all other values are the defaults.",
        "# A key behind a # without a space is not set: remove the # and change the example.",
        f"# Task {task}: {TASK_ROWS[task]}.",
    ]
    for name, info in Run.model_fields.items():
        lines += ["", *_entry(name, info, {"data.task": task})]
    return "\n".join(lines) + "\n"


def _entry(name: str, info: FieldInfo, fixed: dict[str, str]) -> list[str]:
    if name in _OFF:
        return _section(name, _OFF[name], fixed, is_off=True)
    if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
        return _section(name, info.annotation, fixed)
    return _setting(name, name, info, fixed)


def _section(name: str, model: type[BaseModel], fixed: dict[str, str], *, is_off: bool = False) -> list[str]:
    lines = [*_comment(" ".join((model.__doc__ or "").split())), f"{'#' if is_off else ''}{name}:"]
    for field_name, info in model.model_fields.items():
        key = key_of(field_name, info)
        lines += [f"  {line}" for line in _setting(f"{name}.{key}", key, info, fixed, is_off=is_off)]
    return lines


def _setting(
    dotted: str, key: str, info: FieldInfo, fixed: dict[str, str], *, is_off: bool = False
) -> list[str]:
    default = info.get_default(call_default_factory=True)
    is_open = default in (None, PydanticUndefined)
    value: Any = info.examples[0] if is_open and info.examples else default
    line = f"{key}: {format_value(fixed.get(dotted, value))}"
    is_off = is_off or (default is None and dotted not in _SHOWN)
    return [*_comment((info.description or "") + _choices(info)), f"#{line}" if is_off else line]


def _choices(info: FieldInfo) -> str:
    names = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
    return f" ({' | '.join(str(name) for name in names)})" if len(names) > 1 else ""


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]
