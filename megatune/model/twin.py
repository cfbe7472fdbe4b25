"""A second model of the same make without weights, to be filled with whole ones: what generation runs on.

An engine's own model carries hooks that gather and release weights at every layer of every token. Its
twin has none: it is the plain model that `build_model` makes, cut for the same tensor-parallel group.
"""

from collections.abc import Iterable

import torch
from torch import nn

from megatune.model.build import BuiltModel, build_model
from megatune.model.collectives import TensorGroup


def empty_twin(
    built: BuiltModel, group: TensorGroup, dtype: torch.dtype, *, widen_bf16: bool = False
) -> BuiltModel:
    """The model of `built` again: the same share of every weight, on the meta device until `fill`.

    widen_bf16: as `built` was made.
    """
    twin = build_model(
        built.source,
        dtype=dtype,
        initialize="empty",
        attn_implementation=built.model.config._attn_implementation or "auto",
        group=group,
        widen_bf16=widen_bf16,
    )
    _adopt_constants(twin.model, built.model)
    twin.model.requires_grad_(False).eval()
    return twin


def fill(twin: BuiltModel, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Give every parameter its values; tied ones stay tied. `weights`: this rank's shares, by name."""
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in twin.model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            holders.setdefault(id(parameter), []).append((module, leaf))
    places = {name: holders[id(parameter)] for name, parameter in twin.model.named_parameters()}
    for name, values in weights:
        whole = nn.Parameter(values, requires_grad=False)
        for module, leaf in places.pop(name):
            setattr(module, leaf, whole)
    assert not places, f"weights without values: {sorted(places)[:3]}"


def _adopt_constants(twin: nn.Module, model: nn.Module) -> None:
    """Rotary angles and the like are computed when a model is made, and were not on the meta device."""
    for ours, theirs in zip(twin.modules(), model.modules(), strict=True):
        for name, buffer in theirs._buffers.items():
            if buffer is not None:
                ours._buffers[name] = buffer
        for name, value in vars(theirs).items():
            if isinstance(value, torch.Tensor) and not name.startswith("_"):
                setattr(ours, name, value)
