"""A layout as the command line takes it: `tp=8,dp=32,micro_batch=1,...`."""

from collections import Counter
from collections.abc import Iterator, Mapping

from megatune.config.fields import offload_text
from megatune.errors import ConfigError
from megatune.plan.layout import Layout

_COUNTS = ("tp", "dp", "micro_batch", "accumulation")
_WORDS = {"gradient_checkpointing": ("true", "false"), "zero_stage": ("0", "1", "2", "3")}
_KEYS = (*_COUNTS, *_WORDS, "offload")
_ELSEWHERE = {
    "chunked_loss": "train.chunked_loss=true behind the run file",
    "seq": "data.max_seq_length=N behind the run file, or --seq to compare lengths",
}
"""What is no part of a layout, and where it is given instead."""


def parse_layout(text: str, num_devices: int) -> Layout:
    """The layout that `text` describes; what is not given has its plainest value, dp fills the devices.

    Raises ConfigError with every problem.

    >>> parse_layout("tp=2,micro_batch=4", 8).data_parallel
    4
    """
    parts = [(key.strip(), equals, value.strip()) for key, equals, value in _parted(text)]
    given = {key: value for key, _, value in parts}
    problems = [problem for part in parts for problem in _problems(*part)]
    counts = Counter(key for key, _, _ in parts)
    problems += [
        f"--layout: {key} is given {count} times; keep one." for key, count in counts.items() if count > 1
    ]
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


def _parted(text: str) -> Iterator[tuple[str, str, str]]:
    for part in text.split(","):
        yield part.partition("=")


def _problems(key: str, equals: str, value: str) -> Iterator[str]:
    if key in _ELSEWHERE:
        yield f"--layout: {key} is no part of a layout; give {_ELSEWHERE[key]}."
    elif not equals or key not in _KEYS:
        yield f"--layout: '{key}{equals}{value}' is not KEY=VALUE with one of {', '.join(_KEYS)}."
    elif key in _COUNTS and not (value.isdecimal() and int(value) > 0):
        yield f"--layout: {key} = {value} is not a whole number from 1."
    elif key in _WORDS and value not in _WORDS[key]:
        yield f"--layout: {key} = {value}; use {', '.join(_WORDS[key][:-1])} or {_WORDS[key][-1]}."
    elif key == "offload":
        try:
            offload_text(value)
        except ValueError as error:
            yield f"--layout: offload = {value}; use {error}."


def _wrong_product(given: Mapping[str, str], num_devices: int) -> Iterator[str]:
    degree = int(given.get("tp", 1))
    data = int(given.get("dp", max(1, num_devices // degree)))
    if degree * data != num_devices:
        yield f"--layout: tp {degree} x dp {data} = {degree * data}, but there are {num_devices} devices."
