"""The kinds of value a run file holds. Strict: `seed: true` is not 1 and `"1e-5"` in quotes is not a number.

A validator raises ValueError with the clause that follows "it must be": `problems` puts it into a sentence.
"""

import math
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator
from pydantic.fields import FieldInfo

MAX_COUNT = 2**31 - 1

# Control characters, lone surrogates and line separators: none can be in a file name, a job name or an
# `#SBATCH` line without meaning something else than the user sees.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})

_MINUTES = r"\d+"
_CLOCK = r"\d+:[0-5]?\d(:[0-5]?\d)?"  # minutes:seconds or hours:minutes:seconds
_DAYS = r"\d+-\d+(:[0-5]?\d){0,2}"
_SLURM_TIME = re.compile(rf"({_MINUTES}|{_CLOCK}|{_DAYS})", re.ASCII)
_SLURM_MEMORY = re.compile(r"\d+[KMGT]?", re.ASCII)


def one_line(text: str) -> str:
    """`text` itself. Raises ValueError when it is empty or would not print on one line."""
    if not text.strip():
        raise ValueError("text that is not empty")
    if any(unicodedata.category(char) in _REFUSED_CATEGORIES for char in text):
        raise ValueError("text on one line, without control characters")
    return text


def _block_text(text: str) -> str:
    odd = (char for char in text if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t")
    if not text.strip() or any(odd):
        raise ValueError("text that is not empty, without control characters but line breaks and tabs")
    return text


def path_text(text: str) -> str:
    """`text` itself. Raises ValueError where the text is no usable path."""
    one_line(text)
    if text.startswith("~"):
        # Only a shell expands it; here it would make a folder whose name is "~".
        raise ValueError("a path written in full, without ~")
    return text


def _as_path(value: object) -> object:
    if isinstance(value, str):
        return Path(path_text(value))
    if isinstance(value, Path):
        return value
    raise ValueError("a path")


def _no_flag(value: object) -> object:
    if isinstance(value, bool):  # equal to 0 or 1, so a set of allowed numbers would take it
        raise ValueError("one of 0, 1, 2, 3")
    return value


def offload_text(text: str) -> str:
    """`text` itself. Raises ValueError where it names no place to offload to."""
    target = text.removeprefix("nvme:")
    if text in ("none", "optimizer", "all") or (target != text and target.startswith("/")):
        return text
    raise ValueError("none, optimizer, all, or nvme:/absolute/path")


def _warmup(steps: float) -> float:
    if steps >= 1 and steps != math.floor(steps):
        raise ValueError("a whole number of steps, or below 1 for a share of all steps")
    return steps


def _val_size(value: object) -> object:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and (0 < value < 1 or (value >= 1 and value == int(value))):  # type: ignore[operator, call-overload]
        return value
    raise ValueError("a share above 0 and below 1, or a whole number of rows")


def _class_weights(value: object) -> object:
    """`none`, `balanced`, or a positive number for each label."""
    if value in ("none", "balanced") and isinstance(value, str):
        return value
    are_numbers = isinstance(value, dict) and all(
        isinstance(one, (int, float)) and not isinstance(one, bool) and 0 < one < math.inf
        for one in value.values()
    )
    if isinstance(value, dict) and value and are_numbers:
        return {one_line(label): float(weight) for label, weight in value.items()}
    raise ValueError("none, balanced, or a positive number for each label, as in {spam: 2.0, ham: 1.0}")


def _number_as_text(value: object) -> object:
    """Slurm takes bare numbers where YAML sees integers (`time: 90`, `mem: 4000`)."""
    return str(value) if type(value) is int else value


def _slurm_time(text: str) -> str:
    if not _SLURM_TIME.fullmatch(text):
        raise ValueError("HH:MM:SS, D-HH:MM:SS, or minutes")
    return text


def _slurm_memory(text: str) -> str:
    if not _SLURM_MEMORY.fullmatch(text):
        raise ValueError("a number with K, M, G or T, as in 64G; a bare number is MiB")
    return text


def or_auto(schema: dict[str, Any]) -> None:
    """Let a field's JSON schema admit `auto` beside what it is."""
    kept: dict[str, Any] = {
        key: schema.pop(key) for key in ("title", "default", "description", "examples") if key in schema
    }
    inner = dict(schema)
    schema.clear()
    schema.update(kept, anyOf=[inner, {"const": "auto"}])


class Section(BaseModel):
    """Common to all sections: frozen, a key it does not know is an error, and null is the default."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        known = {key_of(name, info) for name, info in cls.model_fields.items()}
        # An unknown key stays, to be refused whatever it holds.
        return {key: value for key, value in values.items() if value is not None or key not in known}


def key_of(name: str, info: FieldInfo) -> str:
    """The key of a field in the run file: its name, but where Python reserves the word."""
    return info.alias or name


Text = Annotated[str, Strict(), AfterValidator(one_line)]
Metric = Annotated[Text, AfterValidator(lambda name: name.removeprefix("eval_"))]
BlockText = Annotated[str, Strict(), AfterValidator(_block_text)]
PathText = Annotated[str, Strict(), AfterValidator(path_text)]
RunPath = Annotated[Path, BeforeValidator(_as_path)]
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=1, le=MAX_COUNT)]
CountOrZero = Annotated[int, Strict(), Field(ge=0, le=MAX_COUNT)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Strict(), Field(ge=0, lt=1, allow_inf_nan=False)]
Warmup = Annotated[NonNegative, AfterValidator(_warmup)]
ValSize = Annotated[float, BeforeValidator(_val_size)]
ClassWeights = Annotated[Literal["none", "balanced"] | dict[str, float], BeforeValidator(_class_weights)]
ZeroStage = Annotated[Literal[0, 1, 2, 3], BeforeValidator(_no_flag)]
Offload = Annotated[Text, AfterValidator(offload_text)]
SlurmTime = Annotated[Text, BeforeValidator(_number_as_text), AfterValidator(_slurm_time)]
SlurmMemory = Annotated[Text, BeforeValidator(_number_as_text), AfterValidator(_slurm_memory)]
