"""A model that only predicts: whole, or cut for a tensor-parallel group; without optimizer and ZeRO."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatune.engine.speaker import Gather, Speaker, speaking
from megatune.engine.world import World
from megatune.model.build import BuiltModel
from megatune.model.forward import TokenBatch, loss_of_batch, row_arguments, row_losses_of_batch
from megatune.model.head_loss import HeadLoss


class InferenceEngine:
    """Every rank of a tensor-parallel group holds its share of the weights, every group a copy of the model."""

    def __init__(self, built: BuiltModel, world: World, head_loss: HeadLoss | None = None) -> None:
        """Without `head_loss` losses come from whole logits."""
        self.built, self.world = built, world
        self._head_loss, self.chunked_loss = head_loss, head_loss is not None
        built.model.to(world.device)  # type: ignore[arg-type]
        built.model.eval()

    @property
    def _loss_in_head(self) -> HeadLoss | None:
        return self._head_loss if self.chunked_loss else None

    def loss(self, batch: TokenBatch) -> torch.Tensor:
        """See `Engine.loss`."""
        return loss_of_batch(self.built.model, self.built, batch, self.world.device, self._loss_in_head)

    def row_losses(self, batch: TokenBatch) -> torch.Tensor:
        """See `Predictor.row_losses`."""
        return row_losses_of_batch(self.built.model, self.built, batch, self.world.device, self._loss_in_head)

    def logits(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """See `Engine.logits`."""
        device = self.world.device
        arguments = row_arguments(self.built, input_ids.to(device), position_ids.to(device))
        return self.built.model(**arguments).logits  # type: ignore[no-any-return]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """See `Engine.evaluating`."""
        was_training = self.built.model.training
        self.built.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.built.model.train(was_training)

    @contextmanager
    def speaking(self, gather: Gather = "auto") -> Iterator[Speaker]:
        """See `Engine.speaking`; nothing is divided over data-parallel ranks here."""
        del gather
        with self.evaluating(), speaking(self.built, in_step=False) as speaker:
            yield speaker
