"""Hidden states, a head and labels, and what ranks do with a share of them."""

from dataclasses import dataclass
from typing import Any

import torch
from parity_steps import world_of

from megatune.model.head_loss import HeadSettings, chunked_loss_sum
from megatune.tasks.labels import IGNORED

VOCABULARY, HIDDEN = 101, 12


@dataclass
class Drawn:
    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    labels: torch.Tensor

    def to_numpy(self) -> list[Any]:
        return [self.hidden.numpy(), self.weight.numpy(), self.bias.numpy(), self.labels.numpy()]


def draw(dtype: torch.dtype = torch.float32) -> Drawn:
    """Logits up to about 40, and labels of which four in ten are no targets."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(3, 17, HIDDEN, generator=generator) * 3
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    labels = torch.randint(0, VOCABULARY, (3, 17), generator=generator)
    labels[torch.rand(3, 17, generator=generator) < 0.4] = IGNORED
    bias = torch.randn(VOCABULARY, generator=generator)
    return Drawn(hidden.to(dtype), weight.to(dtype), bias.to(dtype), labels)


def gradients_of(drawn: Drawn, settings: HeadSettings) -> list[torch.Tensor]:
    """The loss, and the gradients of hidden states, weight and bias."""
    inputs = [tensor.clone().requires_grad_() for tensor in (drawn.hidden, drawn.weight, drawn.bias)]
    loss = chunked_loss_sum(*inputs, drawn.labels, settings)
    loss.backward()
    return [loss.detach(), *(tensor.grad for tensor in inputs)]  # type: ignore[list-item]


def loss_of_share(arrays: list[Any], first: list[int]) -> list[Any]:
    """The same on the vocabulary rows of this rank, which begin at `first[rank]`."""
    group = world_of(2).tensor_group
    start = first[group.rank]
    stop = [*first, VOCABULARY][group.rank + 1]
    hidden, weight, bias, labels = map(torch.from_numpy, arrays)
    share = Drawn(hidden, weight[start:stop], bias[start:stop], labels)
    settings = HeadSettings(group=group, first_token=start, chunk_rows=8)
    return [tensor.numpy() for tensor in gradients_of(share, settings)]
