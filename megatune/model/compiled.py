"""Transformer blocks through torch.compile: what stands between products (norms, rotations, activations, casts)
becomes few kernels.

Block by block, since blocks are alike: one compilation serves all, and ZeRO's hooks and checkpointing stay outside.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from megatune.errors import ConfigError
from megatune.model.collectives import TensorGroup

_MOST_VARIANTS = 64
"""Of one block's code: kinds of layers, lengths of sequences. Beyond it torch goes on uncompiled (its default: 8)."""


def compile_blocks(model: nn.Module, block_class: type[nn.Module], group: TensorGroup) -> None:
    """Have every block of `model` run compiled where gradients are wanted; nothing is compiled before it runs.

    Without gradients blocks run as they are: scores and answers come in many lengths, each a compilation.
    Raises ConfigError without a C++ compiler, which torch needs on every device.
    """
    _prepare_compiler(on_cpu=next(model.parameters()).device.type == "cpu")
    if group.size > 1:  # they change tensors in place, and remember what has entered
        group.enter = torch.compiler.disable(group.enter)  # type: ignore[method-assign]
        group.sum = torch.compiler.disable(group.sum)  # type: ignore[method-assign]
    for block in model.modules():
        if isinstance(block, block_class):
            block.forward = _compiled(block.forward)


def runs_compiled(model: nn.Module) -> bool:
    """Whether the blocks of `model` are those of `compile_blocks`."""
    return any(getattr(module.forward, "runs_compiled", False) for module in model.modules())


def _compiled(eager: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(eager)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else eager)(*args, **kwargs)

    forward.runs_compiled = True  # type: ignore[attr-defined]
    return forward


def _prepare_compiler(*, on_cpu: bool) -> None:
    # Not above: they take a second of processor time, and most runs compile nothing.
    dynamo: Any = import_module("torch._dynamo.config")
    inductor: Any = import_module("torch._inductor.config")
    builder, errors = import_module("torch._inductor.cpp_builder"), import_module("torch._inductor.exc")
    dynamo.recompile_limit = _MOST_VARIANTS
    if on_cpu:
        # A rank's share of the cores is for training, and worker processes would outlive a killed rank.
        inductor.compile_threads = 1
    try:
        builder.get_cpp_compiler()
    except errors.InvalidCxxCompiler as error:
        raise ConfigError(
            [
                "model.compile = true needs a C++ compiler (g++ 9 or newer), and torch found none on this machine. "
                "Install one, name it in the environment variable CXX, or take model.compile=false."
            ]
        ) from error
