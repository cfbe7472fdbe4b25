"""The loss taken inside the head, against torch's own cross-entropy of whole logits in fp64."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from head_loss_cases import Drawn, draw, gradients_of, loss_of_share
from worlds import Worlds

from megatune.model.collectives import TensorGroup
from megatune.model.head_loss import HeadSettings, Post, chunked_loss_sum, post_of
from megatune.tasks.labels import IGNORED

PLAIN = Post()


def expected_of(drawn: Drawn, post: Post = PLAIN) -> list[torch.Tensor]:
    """Loss and gradients in fp64."""
    exact = [tensor.double().requires_grad_() for tensor in (drawn.hidden, drawn.weight, drawn.bias)]
    logits = F.linear(*exact) * post.scale
    if post.softcap is not None:
        logits = post.softcap * torch.tanh(logits / post.softcap)
    loss = F.cross_entropy(
        logits.flatten(0, 1), drawn.labels.flatten(), reduction="sum", ignore_index=IGNORED
    )
    loss.backward()
    return [loss.detach(), *(tensor.grad for tensor in exact)]  # type: ignore[list-item]


def settings(**changes: Any) -> HeadSettings:
    return HeadSettings(**{"group": TensorGroup(), "first_token": 0, **changes})


def largest_share(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("rows", [1, 7, 30, 31, 1000])
@pytest.mark.parametrize("post", [Post(), Post(scale=0.25), Post(softcap=3.0), Post(scale=2.0, softcap=5.0)])
def test_loss_and_gradients_are_exact_wherever_chunks_end(rows: int, post: Post) -> None:
    drawn = draw()

    found = gradients_of(drawn, settings(chunk_rows=rows, post=post))

    for ours, exact in zip(found, expected_of(drawn, post), strict=True):
        assert largest_share(ours, exact) < 1e-5


@pytest.mark.parametrize(("widen", "bound"), [(True, 2**-7), (False, 2**-5)])
def test_bf16_gradients_are_within_roundings_of_the_exact_ones(widen: bool, bound: float) -> None:
    # Logits of 40 are rounded by 1/8 where they pass through bf16, and not at all where they do not.
    drawn = draw(torch.bfloat16)

    found = gradients_of(drawn, settings(chunk_rows=8, widen=widen))

    assert [tensor.dtype for tensor in found] == [torch.float32] + [torch.bfloat16] * 3
    for ours, exact in zip(found, expected_of(drawn), strict=True):
        assert largest_share(ours, exact) < bound


def test_without_a_target_everything_is_zero_and_the_gradients_exist() -> None:
    drawn = draw()
    drawn.labels[:] = IGNORED

    loss, *gradients = gradients_of(drawn, settings())

    assert loss == 0
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_a_frozen_head_gets_no_gradient_and_hands_the_hidden_states_theirs() -> None:
    drawn = draw()
    hidden = drawn.hidden.clone().requires_grad_()

    chunked_loss_sum(hidden, drawn.weight, drawn.bias, drawn.labels, settings()).backward()

    assert drawn.weight.grad is None
    assert largest_share(hidden.grad, expected_of(drawn)[1]) < 1e-5  # type: ignore[arg-type]


def test_an_evaluation_keeps_nothing_for_backward() -> None:
    drawn = draw()
    with torch.no_grad():
        loss = chunked_loss_sum(
            drawn.hidden.clone().requires_grad_(),
            drawn.weight.clone().requires_grad_(),
            drawn.bias,
            drawn.labels,
            settings(),
        )
    assert loss.item() == pytest.approx(expected_of(drawn)[0].item())
    assert not loss.requires_grad


@pytest.mark.parametrize(
    ("config", "post"),
    [
        ({"model_type": "llama", "logit_scale": 3.0}, Post()),
        ({"model_type": "gemma2", "final_logit_softcapping": 30.0}, Post(softcap=30.0)),
        ({"model_type": "cohere", "logit_scale": 0.0625}, Post(scale=0.0625)),
        ({"model_type": "granite", "logits_scaling": 8.0}, Post(scale=0.125)),
        ({"model_type": "hyperclovax", "logits_scaling": 8.0}, Post(scale=8.0)),
        ({"model_type": "falcon_h1", "lm_head_multiplier": 0.5}, Post(scale=0.5)),
        ({"model_type": "recurrent_gemma", "logits_soft_cap": 30.0}, Post(softcap=30.0)),
        ({"model_type": "gemma3n", "text_config": {"final_logit_softcapping": 30.0}}, Post(softcap=30.0)),
    ],
)
def test_what_a_model_does_to_its_logits_is_read_from_its_config(config: dict[str, Any], post: Post) -> None:
    assert post_of(config) == post


@pytest.mark.world
@pytest.mark.parametrize("first", [[0, 51], [0, 1], [0, 100]])
def test_a_vocabulary_on_two_ranks_gives_what_the_whole_gives(worlds: Worlds, first: list[int]) -> None:
    drawn = draw()
    drawn.labels[0, :4] = torch.tensor([0, 50, 51, 100])  # the edges of the shares
    expected = [tensor.numpy() for tensor in expected_of(drawn)]

    ranks = worlds.run(2, loss_of_share, drawn.to_numpy(), first)

    for loss, hidden_grad, _, _ in ranks:
        assert loss == pytest.approx(float(expected[0]), rel=1e-6)
        assert abs(hidden_grad - expected[1]).max() < 1e-5 * abs(expected[1]).max()
    for index in (2, 3):  # the weight's rows and the bias lie side by side
        joined = np.concatenate([rank[index] for rank in ranks])
        assert abs(joined - expected[index]).max() < 1e-5 * abs(expected[index]).max()


_PEAK = """
import sys, torch, torch.nn.functional as F
from pathlib import Path
from megatune.model.collectives import TensorGroup
from megatune.model.head_loss import HeadSettings, chunked_loss_sum
torch.set_num_threads(1)
hidden = torch.randn(2048, 64, requires_grad=True)
weight, labels = torch.randn(32768, 64, requires_grad=True), torch.randint(0, 32768, (2048,))
Path("/proc/self/clear_refs").write_text("5")
status = lambda name: int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) * 1024
before = status("VmRSS")
if sys.argv[1] == "chunked":
    chunked_loss_sum(hidden, weight, None, labels, HeadSettings(group=TensorGroup(), first_token=0)).backward()
else:
    F.cross_entropy(F.linear(hidden, weight), labels, reduction="sum").backward()
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's peak from /proc")
def test_the_loss_of_a_vocabulary_of_32_k_needs_an_eighth_of_the_memory() -> None:
    peaks = {
        way: int(subprocess.run([sys.executable, "-c", _PEAK, way], capture_output=True, check=True).stdout)
        for way in ("chunked", "whole")
    }
    logits = 2048 * 32768 * 4
    assert peaks["whole"] > 1.9 * logits  # they, and their gradient: the measurement sees what it should
    assert peaks["chunked"] < peaks["whole"] / 8
