"""bf16 arithmetic through fp32 units, for processors whose bf16 ones are slower.

Some CPUs have AVX512-BF16 but no AMX, and multiply bf16 at half the speed of fp32 or less. There bf16 operands are
widened, multiplied in fp32, and the result is rounded to bf16: what the bf16 unit does too (bf16 operands,
fp32 sums, one rounding), in another order of summation.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from megatune.model.tensor_parallel import ColumnLinear, KeyValueLinear, RowLinear

_WORTH_IT = 1.2
"""How much faster fp32 must be before it pays to convert operands."""
_SIZES = (256, 512, 1024)
_FEWEST_ROWS = 32
"""With fewer tokens at once the time goes into the conversion of weights: bf16 is then multiplied as it is."""


def fp32_advantage(repeats: int = 7) -> float:
    """How many times faster this processor multiplies bf16 matrices by way of fp32: some 50 ms.

    Processor time, the best of several alternating trials: other programs on the machine slow both.
    """
    rows, inner, columns = _SIZES
    left, right = (
        torch.ones(rows, inner, dtype=torch.bfloat16),
        torch.ones(inner, columns, dtype=torch.bfloat16),
    )
    ways: list[Callable[[], object]] = [
        lambda: left @ right,
        lambda: (left.float() @ right.float()).bfloat16(),
    ]
    best = [float("inf"), float("inf")]
    for trial in range(repeats + 1):
        for index, way in enumerate(ways):
            started = time.thread_time()
            way()
            if trial > 0:  # the first one builds the kernel
                best[index] = min(best[index], time.thread_time() - started)
    return best[0] / best[1]


def is_worth_it(advantage: float) -> bool:
    """Should bf16 be widened on a processor with this `fp32_advantage`?"""
    return advantage > _WORTH_IT


def widen(model: nn.Module) -> None:
    """Have every Linear of `model`, and sdpa attention, compute in fp32 on bf16 operands."""
    for module in model.modules():
        kind = type(module).forward
        if kind in (nn.Linear.forward, ColumnLinear.forward):
            module.forward = _linear_of(module)
        elif kind is RowLinear.forward:
            module.forward = _row_linear_of(module)  # type: ignore[arg-type]
        elif kind is KeyValueLinear.forward:
            module.forward = _key_value_linear_of(module)  # type: ignore[arg-type]
    _widen_attention()


def _linear_of(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    group = getattr(module, "group", None)

    def forward(input: torch.Tensor) -> torch.Tensor:
        entered = input if group is None else group.enter(input)
        return widened_linear(entered, module.weight, module.bias)

    return forward


def _row_linear_of(module: RowLinear) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(input: torch.Tensor) -> torch.Tensor:
        output = module.group.sum(widened_linear(input, module.weight, None))
        return output if module.bias is None else output + module.bias

    return forward


def _key_value_linear_of(module: KeyValueLinear) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(input: torch.Tensor) -> torch.Tensor:
        compute = input.dtype if _is_too_small(input) else torch.float32
        return module.multiplied_in(compute, input)

    return forward


def _is_too_small(input: torch.Tensor) -> bool:
    """A few tokens, such as those of answers that are being written: conversion would cost more than it saves."""
    return not torch.is_grad_enabled() and input.numel() < _FEWEST_ROWS * input.shape[-1]


def widened_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """F.linear with fp32 products and sums; the result has the dtype of `input`.

    Without gradients a few tokens, such as those of answers that are being written, are not widened.
    """
    if _is_too_small(input):
        return nn.functional.linear(input, weight, bias)
    if torch.compiler.is_compiling():  # which saves what it needs by itself, casts not among it
        product = input.float() @ weight.float().t()
        return (product if bias is None else product + bias.float()).to(input.dtype)
    output: torch.Tensor = _WidenedLinear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
    return output


class _WidenedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        # The weight is kept as the parameter it is: ZeRO-3 empties it after this and fills it before backward.
        ctx.save_for_backward(input, weight)
        output = input.float() @ weight.float().t()
        if bias is not None:
            output += bias.float()
        return output.to(input.dtype)  # no view: the sum over a tensor-parallel group is made in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        grad = grad_output.flatten(0, -2).float()
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = (grad @ weight.float()).to(input.dtype).view_as(input)
        if ctx.needs_input_grad[1]:
            grad_weight = (grad.t() @ input.flatten(0, -2).float()).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=0).to(weight.dtype)
        return grad_input, grad_weight, grad_bias


def _widen_attention() -> None:
    """Put a widening function in the place of transformers' sdpa, for this process."""
    usual: Any = AttentionInterface._global_mapping["sdpa"]
    if hasattr(usual, "widens"):
        return

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        **rest: Any,
    ) -> tuple[torch.Tensor, None]:
        if query.dtype != torch.bfloat16 or query.device.type != "cpu":
            return usual(module, query, key, value, mask, **rest)  # type: ignore[no-any-return]
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.float()
        output, _ = usual(module, query.float(), key.float(), value.float(), mask, **rest)
        return output.to(query.dtype), None

    attention.widens = True  # type: ignore[attr-defined]
    AttentionInterface.register("sdpa", attention)
