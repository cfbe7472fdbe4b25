"""The keys of the run file that make a layout, and runs with the values of one."""

from collections.abc import Mapping, Sequence
from typing import Any

from megatune.config import BatchShape, Run
from megatune.config.auto import AUTO_KEYS
from megatune.plan.layout import Layout

CHECKPOINTING = "model.gradient_checkpointing"
LAYOUT_KEYS = (*AUTO_KEYS, CHECKPOINTING)


def value_of(run: Run, key: str) -> object:
    """The value at a dotted key of two names."""
    section, _, name = key.partition(".")
    return getattr(getattr(run, section), name)


def values_of(layout: Layout) -> dict[str, object]:
    """What the run file says at each of LAYOUT_KEYS for `layout`."""
    return {
        "parallel.tp_size": layout.tensor_parallel,
        "parallel.zero_stage": layout.zero_stage,
        "parallel.offload": layout.offload,
        "train.per_device_train_batch_size": layout.micro_batch,
        CHECKPOINTING: layout.gradient_checkpointing,
    }


def with_layout(run: Run, layout: Layout, keys: Sequence[str] = LAYOUT_KEYS) -> Run:
    """A copy of `run` in which `keys` have the values of `layout`."""
    values = values_of(layout)
    return with_values(run, {key: values[key] for key in keys})


def with_values(run: Run, values: Mapping[str, object]) -> Run:
    """A copy of `run` with values at dotted keys of two names."""
    by_section: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        by_section.setdefault(section, {})[name] = value
    sections: dict[str, Any] = {
        section: getattr(run, section).model_copy(update=update) for section, update in by_section.items()
    }
    return run.model_copy(update=sections)


def batch_of(layout: Layout) -> BatchShape:
    """The batch that `layout` takes a step."""
    return BatchShape(
        micro=layout.micro_batch, accumulation=layout.accumulation, global_sequences=layout.global_sequences
    )


def differing(one: Layout, other: Layout) -> list[str]:
    """The settings that differ, without those that follow from the others."""
    mine, theirs = one.to_json(), other.to_json()
    return [key for key in mine if mine[key] != theirs[key] and key not in ("dp", "accumulation")]


def shown(value: object) -> str:
    """A value as the run file and the command line have it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def overrides_for(run: Run, layout: Layout, beside: Layout | None = None) -> list[str]:
    """What must stand behind the run file for `layout`, as on the command line; `beside`: only what differs from it.

    The batch is given under the key that `run` gives it by, for the others exclude each other.
    """
    values, others = values_of(layout), {} if beside is None else values_of(beside)
    found = [f"{key}={shown(value)}" for key, value in values.items() if others.get(key) != value]
    train = run.train
    if train.global_batch_size is not None:
        key, size, other = "global_batch_size", layout.global_sequences, beside and beside.global_sequences
    elif train.tokens_per_step is not None:
        seq = run.data.max_seq_length
        key, size = "tokens_per_step", layout.global_sequences * seq
        other = beside and beside.global_sequences * seq
    else:
        key, size, other = "gradient_accumulation_steps", layout.accumulation, beside and beside.accumulation
    return found if size == other else [*found, f"train.{key}={size}"]
