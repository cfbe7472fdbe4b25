"""A layout as the command line takes it: `tp=8,dp=32,micro_batch=1,...`."""

from collections.abc import Iterator, Mapping

from megatune.errors import ConfigError
from megatune.plan.layout import Layout

_COUNTS = ("tp", "dp", "micro_batch", "accumulation")
_WORDS = {
    "gradient_checkpointing": ("true", "false"),
    "offload": ("none", "optimizer", "all"),
    "zero_stage": ("0", "1", "2", "3"),
}


def parse_layout(text: str, num_devices: int) -> Layout:
    """The layout that `text` describes; what is not given has its plainest value, dp fills the devices.

    Raises ConfigError with every problem.

    >>> parse_layout("tp=2,micro_batch=4", 8).data_parallel
    4
    """
    parts = [part.strip().partition("=") for part in text.split(",")]
    given = {key: value.strip() for key, _, value in parts}
    problems = [problem for key, equals, value in parts for problem in _problems(key, equals, value.strip())]
    if not problems:
        problems = list(_wrong_product(given, num_devices))
    if problems:
        raise ConfigError(problems, source="megatune plan")
    degree = int(given.get("tp", 1))
    return Layout(
        tensor_parallel=degree,
        data_parallel=int(given.get("dp", num_devices // degree)),
        micro_batch=int(given.get("micro_batch", 1)),
        accumulation=int(given.get("accumulation", 1)),
        gradient_checkpointing=given.get("gradient_checkpointing") == "true",
        offload=given.get("offload", "none"),
        zero_stage=int(given.get("zero_stage", 3)),
    )


def _problems(key: str, equals: str, value: str) -> Iterator[str]:
    if not equals or key not in (*_COUNTS, *_WORDS):
        yield f"--layout: '{key}{equals}{value}' is not KEY=VALUE with one of {', '.join((*_COUNTS, *_WORDS))}."
    elif key in _COUNTS and not (value.isdecimal() and int(value) > 0):
        yield f"--layout: {key} = {value} is not a whole number from 1."
    elif key in _WORDS and value not in _WORDS[key]:
        yield f"--layout: {key} = {value}; use {', '.join(_WORDS[key][:-1])} or {_WORDS[key][-1]}."


def _wrong_product(given: Mapping[str, str], num_devices: int) -> Iterator[str]:
    degree = int(given.get("tp", 1))
    data = int(given.get("dp", max(1, num_devices // degree)))
    if degree * data != num_devices:
        yield f"--layout: tp {degree} x dp {data} = {degree * data}, but there are {num_devices} devices."
