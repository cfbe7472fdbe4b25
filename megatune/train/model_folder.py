"""What a checkpoint keeps of a model beside its weights: configuration, tokenizer, and buffers that files hold too."""

import copy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from megatune.checkpoint.layout import BUFFERS
from megatune.model.build import BuiltModel


def buffers_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The persistent buffers of `model` by name, in their own dtypes: biases of routers, scalars of layers.

    Training leaves them as they are, and so does every layout: no rank has a part of one.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    stored = model.state_dict()
    return {name: value for name, value in stored.items() if name not in parameters}


def write_folder(built: BuiltModel, target: Path) -> None:
    """Everything but the parameters into `target`, which is there."""
    built.source.copy_without_weights(target)
    if built.is_text_alone:
        config = copy.deepcopy(built.model.config)
        config.architectures = [type(built.model).__name__]
        config.vocab_size = built.source.shape.vocab_size
        config.use_cache = getattr(built.source.config.get_text_config(), "use_cache", True)
        config.save_pretrained(target)
    buffers = buffers_of(built.model)
    if buffers:
        save_file({name: value.cpu().contiguous() for name, value in buffers.items()}, target / BUFFERS)
