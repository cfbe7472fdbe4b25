"""What a world leaves behind: losses, gradient norms and weights, in a folder that another process reads.

One safetensors file a weight, so that neither side ever holds more than one of them.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_TRACE = "trace.json"
_TENSOR = "weight"


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The steps of one world, as all its ranks agree on them."""

    engine: str
    """`Engine.description`: what was really active."""
    losses: list[float]
    """Mean loss over the target tokens of each step, in nats."""
    grad_norms: list[float]
    """Norm of the whole gradient before clipping, of each step."""
    learning_rates: list[float]
    skipped: int
    """fp16 attempts that overflowed; each was taken again on the same rows at a lower loss scale."""
    weights: dict[str, str] = field(default_factory=dict)
    """Weight name -> its file: the fp32 weights after the last step."""
    initial_weights: dict[str, str] = field(default_factory=dict)
    """The same before the first step; only the reference keeps them."""


def write_weights(folder: Path, weights: Iterable[tuple[str, torch.Tensor]], *, keep: bool) -> dict[str, str]:
    """Write each weight to a file of its own in `folder`; name -> file. `keep`: this rank holds them.

    The other ranks go through `weights` all the same: every item is a collective.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    for number, (name, weight) in enumerate(weights):
        if keep:
            files[name] = f"{folder.name}/{number:05d}.safetensors"
            save_file({_TENSOR: weight.contiguous()}, folder.parent / files[name])
    return files


def write_trace(folder: Path, trace: Trace) -> None:
    """Write everything but the weights, which are in `folder` already."""
    (folder / _TRACE).write_text(json.dumps(asdict(trace)), encoding="utf-8")


def read_trace(folder: Path) -> Trace:
    """The trace that a world left in `folder`."""
    return Trace(**json.loads((folder / _TRACE).read_text(encoding="utf-8")))


def read_weight(folder: Path, file: str) -> torch.Tensor:
    """One weight of the trace in `folder`, fp32, as its model has it."""
    return load_file(folder / file)[_TENSOR]
