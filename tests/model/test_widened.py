"""bf16 multiplied in fp32 is bf16 arithmetic: the exact product, rounded once."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface

from megatune.model.widened import fp32_advantage, is_worth_it, widen, widened_linear


@pytest.fixture(autouse=True)
def _attention_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widening a model puts another attention in place for the whole process; other tests weigh the usual one."""
    usual = AttentionInterface._global_mapping["sdpa"]
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", usual)


@pytest.mark.parametrize("with_bias", [False, True])
def test_the_product_and_its_gradients_are_the_exact_ones_rounded_once(with_bias: bool) -> None:
    torch.manual_seed(0)
    shapes = [(3, 5, 48), (32, 48), (32,)][: 2 + with_bias]
    tensors = [torch.randn(shape, dtype=torch.bfloat16) for shape in shapes]
    upstream = torch.randn(3, 5, 32, dtype=torch.bfloat16)
    ours = [tensor.clone().requires_grad_() for tensor in tensors]
    exact = [tensor.double().requires_grad_() for tensor in tensors]

    output = widened_linear(ours[0], ours[1], ours[2] if with_bias else None)
    output.backward(upstream)
    expected = F.linear(exact[0], exact[1], exact[2] if with_bias else None)
    expected.backward(upstream.double())

    torch.testing.assert_close(output.double(), expected, rtol=2**-8, atol=1e-5)
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None and mine.grad.dtype == torch.bfloat16
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("with_bias", [False, True])
def test_compiled_it_gives_the_same_product_and_gradients(with_bias: bool) -> None:
    torch.manual_seed(0)
    shapes = [(64, 48), (32, 48), (32,)][: 2 + with_bias]
    tensors = [torch.randn(shape, dtype=torch.bfloat16) for shape in shapes]
    upstream = torch.randn(64, 32, dtype=torch.bfloat16)

    def product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return widened_linear(input, weight, bias)

    found = []
    for function in (torch.compile(product, fullgraph=True), product):
        mine = [tensor.clone().requires_grad_() for tensor in tensors]
        output = function(*mine)
        output.backward(upstream)
        found.append([output.detach(), *(tensor.grad for tensor in mine)])

    for compiled, eager in zip(*found, strict=True):
        assert compiled.dtype == torch.bfloat16
        torch.testing.assert_close(compiled, eager, rtol=2**-8, atol=1e-5)


def test_the_output_may_be_changed_in_place_as_a_sum_over_ranks_does() -> None:
    inputs = torch.randn(2, 3, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(4, 8, dtype=torch.bfloat16)

    widened_linear(inputs, weight, None).mul_(2).sum().backward()

    torch.testing.assert_close(inputs.grad, (2 * weight.sum(dim=0)).expand(2, 3, 8), rtol=2**-6, atol=2**-6)


def test_every_linear_of_a_model_is_widened_and_gives_bf16() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 8, bias=False)).bfloat16()
    inputs = torch.randn(4, 16, dtype=torch.bfloat16)
    usual = model(inputs)

    widen(model)
    found = model(inputs)

    assert "_WidenedLinear" in type(found.grad_fn).__name__
    torch.testing.assert_close(found, usual, rtol=2**-6, atol=2**-6)


def test_the_measured_advantage_is_a_ratio_of_this_processor() -> None:
    advantage = fp32_advantage(repeats=1)
    assert 0.01 < advantage < 100
    assert is_worth_it(2.0) and not is_worth_it(1.0)


def test_a_few_tokens_without_gradients_are_multiplied_as_they_are() -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(31, 16, dtype=torch.bfloat16), torch.randn(8, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        found = widened_linear(inputs, weight, None)

    assert torch.equal(found, F.linear(inputs, weight))
    torch.testing.assert_close(found, widened_linear(inputs, weight, None), rtol=2**-7, atol=2**-7)
