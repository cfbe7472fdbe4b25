"""What training and evaluation ask of an engine.

`ZeroEngine` and `PlainEngine`, which is also the reference, train; `InferenceEngine` predicts only.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from megatune.engine.accounting import HeldBytes
from megatune.engine.speaker import Gather, Speaker
from megatune.engine.state import RankState, SavedState
from megatune.engine.world import World
from megatune.model.build import BuiltModel
from megatune.model.forward import TokenBatch
from megatune.plan.shards import Division


@dataclass(frozen=True)
class StepOutcome:
    """What `Engine.step` did."""

    grad_norm: float | None
    """Norm of the whole model's gradient before clipping; None when the step was skipped."""
    skipped: bool
    """True when fp16 gradients overflowed and the weights were left as they were."""


class Predictor(Protocol):
    """A model that predicts. All methods are collective: every rank calls them."""

    world: World
    built: BuiltModel

    def loss(self, batch: TokenBatch) -> torch.Tensor:
        """Sum of the token losses of this rank's micro-batch: fp32 scalar, with graph in training mode."""

    def row_losses(self, batch: TokenBatch) -> torch.Tensor:
        """The same of each row of a language-model head, (batch,) in fp32; call it inside `evaluating`."""

    def logits(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Logits of every position, (batch, seq, this rank's vocabulary); call it inside `evaluating`."""

    def evaluating(self) -> AbstractContextManager[None]:
        """No dropout and no gradients inside."""

    def speaking(self, gather: Gather = "auto") -> AbstractContextManager[Speaker]:
        """The model as it is now, ready to predict; its weights are whole inside, where they fit.

        `auto`: once where every rank has the memory, else per token.
        """


class Engine(Predictor, Protocol):
    """A model that can be trained."""

    @property
    def description(self) -> str:
        """What is really active, for people: asserted from the running objects, not from the settings."""

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add the gradient of `loss`, summed over data-parallel ranks. `is_last`: of the step's batches."""

    def step(self, learning_rate: float, *, leave_out: bool = False) -> StepOutcome:
        """Clip, update the weights and clear the gradients; with `leave_out` only clear them.

        All ranks must say the same.
        """

    def weights(self, *, master: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole weights by their Hugging Face names, on the CPU, one after another.

        Only rank 0 gets tensors of full shape, the others empty ones: they take part in gathering
        their own shares, and one weight at a time is whole, in one place. `master`: the fp32 weights of
        the optimizer instead of the ones the model computes with.
        """


class TrainingEngine(Engine, Protocol):
    """An engine whose training can be saved and gone on with."""

    chunked_loss: bool
    """`loss` is taken inside the head; False: from whole logits. `logits` is the same either way."""

    @property
    def divisions(self) -> dict[str, tuple[Division, ...]] | None:
        """How data-parallel ranks divide each tensor-parallel rank's weights in `state`; None: each evenly."""

    @property
    def is_replicated(self) -> bool:
        """Every data-parallel rank holds everything: `state` is a part of it, `load_state` wants the whole."""

    def held_bytes(self) -> HeldBytes | None:
        """What this rank's training state weighs, counted tensor by tensor; None before its first step."""

    def state(self) -> RankState:
        """This rank's part of the training state; its tensors are views that the next step changes."""

    def load_state(self, state: SavedState) -> None:
        """Go on from `state`. Raises CheckpointError on all ranks when one cannot read its part."""
