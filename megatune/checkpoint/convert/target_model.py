"""The model that a converted checkpoint is for: its parameters by name, without any weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from megatune.checkpoint.weights_index import WeightEntry
from megatune.errors import ConvertError
from megatune.model.conv1d import conv1d_to_linear
from megatune.model.heads import auto_class_of
from megatune.model.source import ModelSource, open_source

_WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel, DeepSpeed and torch.compile put before the names of the model inside."""
_OF_THE_TRAINER = ("trainer_state.json", "zero_to_fp32.py", "zero_to_torch.py", "latest")
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class TargetModel:
    """Names and shapes of a Hugging Face model's parameters."""

    source: ModelSource
    shapes: Mapping[str, tuple[int, ...]]
    """As Hugging Face stores them, in the model's order; a tied weight has one name."""
    aliases: Mapping[str, str]
    """Other name of a tied weight -> its name in `shapes`."""
    transposed: frozenset[str]

    def entries(self) -> dict[str, WeightEntry]:
        """What `weights.json` says of them when nothing is cut."""
        return {
            name: WeightEntry(
                shape=shape[::-1] if name in self.transposed else shape,
                cut=None,
                transposed=name in self.transposed,
            )
            for name, shape in self.shapes.items()
        }

    def copy_files(self, target: Path) -> None:
        """config.json and the tokenizer into `target`, without what the Trainer and DeepSpeed put beside them."""
        self.source.copy_without_weights(target)
        for name in _OF_THE_TRAINER:
            (target / name).unlink(missing_ok=True)


def describe_target(folder: Path) -> TargetModel:
    """The model of `folder`, which needs a config.json only. Raises ModelError."""
    source = open_source(folder)
    with torch.device("meta"):
        model = auto_class_of(source.config).from_config(source.config, trust_remote_code=False)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    everything = dict(model.named_parameters(remove_duplicate=False))
    buffers = [name for name in model.state_dict() if name not in everything]
    if buffers:
        raise ConvertError(
            f"a {type(model).__name__} has {len(buffers)} stored tensors that are no parameters, {buffers[0]} among "
            "them: megatune converts models of parameters alone."
        )
    own_name = {id(value): name for name, value in model.named_parameters()}
    aliases = {name: own_name[id(value)] for name, value in everything.items() if own_name[id(value)] != name}
    return TargetModel(
        source=source, shapes=shapes, aliases=aliases, transposed=frozenset(conv1d_to_linear(model))
    )


def match_names(found: Mapping[str, tuple[int, ...]], model: TargetModel, where: Path) -> dict[str, str]:
    """The model's parameter -> the name it has in `found`, whose shapes may be flat.

    Raises ConvertError with everything that does not fit: nothing is left out and nothing is made up.
    """
    matched: dict[str, str] = {}
    unknown, doubled = [], []
    for name in found:
        own = _own_name(name, model)
        if own is None:
            unknown.append(name)
        elif own in matched:
            doubled.append(f"{matched[own]} and {name}")
        else:
            matched[own] = name
    missing = [name for name in model.shapes if name not in matched]
    unequal = [
        f"{found[name]} of {name}, the model has {model.shapes[own]}"
        for own, name in matched.items()
        if not _fits(found[name], model.shapes[own])
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}"
        for what, names in (
            ("parameters of the model are missing", missing),
            ("are not in the model", unknown),
            ("are the same parameter twice", doubled),
            ("have another shape", unequal),
        )
        if names
    ]
    if problems:
        raise ConvertError(
            f"{where} is not a checkpoint of the model in {model.source.folder}: {'; '.join(problems)}. Give the "
            "model's folder: --model FOLDER."
        )
    return {name: matched[name] for name in model.shapes}


def _own_name(name: str, model: TargetModel) -> str | None:
    while name not in model.shapes and name not in model.aliases:
        prefix = next((prefix for prefix in _WRAPPERS if name.startswith(prefix)), None)
        if prefix is None:
            return None
        name = name.removeprefix(prefix)
    return model.aliases.get(name, name)


def _fits(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return found == expected or found == (torch.Size(expected).numel(),)
