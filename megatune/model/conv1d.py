"""GPT-2's `Conv1D` layers as `nn.Linear`, and the names to transpose back on export.

Conv1D stores its weight as (inputs, outputs), a Linear as (outputs, inputs). Everything that
cuts weights counts on the Linear order, so the layers are exchanged right after loading.
"""

from torch import nn
from transformers.pytorch_utils import Conv1D


def conv1d_to_linear(model: nn.Module) -> frozenset[str]:
    """Exchange every Conv1D of `model`; return the weight names that export must transpose back.

    The new weights are transposed views: nothing is copied, so memory-mapped weights stay mapped.
    """
    exchanged = [(name, module) for name, module in model.named_modules() if isinstance(module, Conv1D)]
    for name, module in exchanged:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _as_linear(module))
    return frozenset(f"{name}.weight" for name, _ in exchanged)


def _as_linear(conv: Conv1D) -> nn.Linear:
    inputs, outputs = conv.weight.shape
    linear = nn.Linear(inputs, outputs, bias=True, device="meta")
    linear.weight = nn.Parameter(conv.weight.detach().t(), requires_grad=conv.weight.requires_grad)
    linear.bias = conv.bias
    return linear
