"""What a rank of a tensor-parallel group does in the loss tests."""

import numpy as np
import torch
from parity_steps import world_of

from megatune.model.loss import token_loss_sum


def loss_of_share(logits: np.ndarray, labels: np.ndarray, first: list[int]) -> tuple[float, np.ndarray]:
    """The loss from this rank's columns of `logits`, which begin at `first[rank]`, and their gradient."""
    world = world_of(len(first))
    stop = [*first[1:], logits.shape[-1]][world.rank]
    start = first[world.rank]
    share = torch.from_numpy(logits[..., start:stop].copy()).requires_grad_()
    loss = token_loss_sum(share, torch.from_numpy(labels), world.tensor_group, start)
    (loss * 0.5).backward()
    assert share.grad is not None
    return loss.item(), share.grad.numpy()
