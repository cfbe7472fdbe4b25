"""The loss that everything is trained with, against torch's own cross-entropy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss_cases import loss_of_share
from worlds import Worlds

from megatune.model import loss as loss_module
from megatune.model.loss import token_loss_sum
from megatune.tasks.labels import IGNORED

SHAPE = (3, 17, 101)


def draw(dtype: torch.dtype = torch.float32, *, ignored: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits up to about 40, so that a softmax without its maximum taken off would overflow, and labels."""
    generator = torch.Generator().manual_seed(4)
    logits = (torch.randn(SHAPE, generator=generator) * 12 + 60).to(dtype)
    labels = torch.randint(0, SHAPE[-1], SHAPE[:2], generator=generator)
    labels[torch.rand(SHAPE[:2], generator=generator) < ignored] = IGNORED
    return logits, labels


def expected_of(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's value and gradient, in fp64."""
    exact = logits.double().requires_grad_()
    loss = F.cross_entropy(exact.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=IGNORED)
    loss.backward()
    assert exact.grad is not None
    return loss.detach(), exact.grad


def found_of(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    ours = logits.clone().requires_grad_()
    loss = token_loss_sum(ours, labels)
    loss.backward()
    assert ours.grad is not None
    return loss.detach(), ours.grad


def test_value_and_gradient_are_those_of_torch_in_fp32() -> None:
    logits, labels = draw()
    (loss, grad), (expected_loss, expected_grad) = found_of(logits, labels), expected_of(logits, labels)

    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-4, atol=1e-6)


def test_bf16_logits_are_summed_in_fp32_and_get_a_bf16_gradient() -> None:
    logits, labels = draw(torch.bfloat16)
    (loss, grad), (expected_loss, expected_grad) = found_of(logits, labels), expected_of(logits, labels)

    assert (loss.dtype, grad.dtype) == (torch.float32, torch.bfloat16)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    torch.testing.assert_close(grad, expected_grad.bfloat16(), rtol=2**-8, atol=1e-6)  # a rounding each


@pytest.mark.parametrize("tokens", [1, 7, 50, 51, 52])
def test_the_result_does_not_depend_on_where_chunks_end(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    logits, labels = draw()
    whole = found_of(logits, labels)
    assert len(loss_module._chunks(logits.flatten(0, 1))) == 1

    monkeypatch.setattr(loss_module, "_CHUNK_ELEMENTS", tokens * SHAPE[-1])

    assert len(loss_module._chunks(logits.flatten(0, 1))) == -(-51 // tokens)
    for found, expected in zip(found_of(logits, labels), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_a_chunk_smaller_than_one_row_of_logits_still_holds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = draw()
    monkeypatch.setattr(loss_module, "_CHUNK_ELEMENTS", 1)

    assert found_of(logits, labels)[0].item() == pytest.approx(expected_of(logits, labels)[0].item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_target_the_loss_and_its_gradient_are_zero(dtype: torch.dtype) -> None:
    logits, labels = draw(dtype, ignored=1.1)

    loss, grad = found_of(logits, labels)

    assert loss.item() == 0
    assert not grad.any()


def test_tokens_without_a_target_get_no_gradient() -> None:
    logits, labels = draw()

    grad = found_of(logits, labels)[1]

    assert not grad[labels == IGNORED].any()
    assert grad[labels != IGNORED].any(dim=-1).all()


@pytest.mark.world
@pytest.mark.parametrize("first", [[0, 51], [0, 1], [0, 100]])
def test_a_vocabulary_on_two_ranks_gives_what_the_whole_gives(worlds: Worlds, first: list[int]) -> None:
    logits, labels = draw()
    labels[0, :4] = torch.tensor([0, 50, 51, 100])  # the edges of the shares
    expected_loss, expected_grad = expected_of(logits, labels)

    ranks = worlds.run(2, loss_of_share, logits.numpy(), labels.numpy(), first)

    assert [loss for loss, _ in ranks] == pytest.approx([expected_loss.item()] * 2, rel=1e-6)
    joined = np.concatenate([grad for _, grad in ranks], axis=-1)
    np.testing.assert_allclose(joined, expected_grad.numpy() * 0.5, rtol=1e-4, atol=1e-6)
