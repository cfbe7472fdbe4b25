"""The loss on a held-out split, over all ranks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatune.data.batches import Batch, evaluation_batches
from megatune.data.prepared import PreparedSet
from megatune.engine.base import Predictor
from megatune.engine.world import World
from megatune.evaluate.answered import Answered
from megatune.evaluate.text_size import exp
from megatune.tasks.labels import IGNORED
from megatune.tasks.metrics.bootstrap import bootstrap
from megatune.tasks.scores import Interval

_BATCHES_BETWEEN_LOOKS = 8  # each is one small collective


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """A token-weighted mean: every target token counts once, whatever batch and rank it was in."""

    loss: float | None
    """Mean cross-entropy in nats; None when no row has a target."""
    target_tokens: int
    num_rows: int
    """Rows of the data that it is over; of one that was divided each piece counts."""
    interval: Interval | None = None
    """The middle 95 % of bootstrap samples of the rows, where the loss of each is known."""

    @property
    def intervals(self) -> dict[str, Interval]:
        """Of the loss and of its perplexity."""
        if self.interval is None:
            return {}
        low, high = self.interval
        return {"loss": self.interval, "perplexity": (exp(low), exp(high))}

    @property
    def perplexity(self) -> float | None:
        """exp(loss); infinite where that overflows, None without a loss."""
        return None if self.loss is None else exp(self.loss)


def loss_of_answers(found: Sequence[Answered]) -> HeldOutLoss | None:
    """The same of rows whose loss came with their answers; None where it did not."""
    losses = [one.loss for one in found if one.loss is not None]
    if len(losses) < len(found):
        return None
    targets = sum(one.num_targets for one in found)
    return HeldOutLoss(
        loss=math.fsum(losses) / targets if targets else None,
        target_tokens=targets,
        num_rows=sum(one.num_targets > 0 for one in found),
        interval=_interval(losses, [one.num_targets for one in found]),
    )


def _interval(losses: Sequence[float], targets: Sequence[float]) -> Interval | None:
    """Of the token-weighted mean, when the rows are drawn again."""
    rows = [(loss, number) for loss, number in zip(losses, targets, strict=True) if number]
    statistics = np.array(rows, dtype=np.float64).reshape(-1, 2)
    return bootstrap(statistics, lambda sums: {"loss": sums[:, 0] / sums[:, 1]}).get("loss")


def held_out_loss(
    engine: Predictor,
    prepared: PreparedSet,
    *,
    micro_batch: int,
    max_rows: int | None = None,
    is_given_up: Callable[[], bool] = lambda: False,
) -> HeldOutLoss | None:
    """The loss on all rows of `prepared`, or its first `max_rows`. Collective: every rank calls it.

    None when `is_given_up`, which all ranks call after every 8 batches and which must answer the same
    on all of them, has put an end to it.
    """
    world = engine.world
    totals = torch.zeros(2, dtype=torch.float64, device=world.device)
    rows: list[torch.Tensor] = []
    # The answers of another head come with its losses, and those have an interval: `loss_of_answers`.
    tells_rows = engine.built.source.head is None
    batches = evaluation_batches(
        prepared,
        micro_batch=micro_batch,
        data_parallel=world.data_parallel,
        dp_rank=world.data_rank,
        max_rows=max_rows,
    )
    with engine.evaluating():
        for number, batch in enumerate(batches, start=1):
            if tells_rows:
                rows.append(_of_rows(engine, batch))
                totals[0] += rows[-1][:, 0].sum()
            else:
                totals[0] += engine.loss(batch)
            totals[1] += batch.num_targets
            if number % _BATCHES_BETWEEN_LOOKS == 0 and is_given_up():
                return None
    loss_sum, targets = world.sum_over_data(totals).tolist()
    return HeldOutLoss(
        loss=loss_sum / targets if targets else None,
        target_tokens=round(targets),
        num_rows=prepared.num_examples_in(max_rows),
        interval=_interval_of_all(world, rows) if tells_rows else None,
    )


def _of_rows(engine: Predictor, batch: Batch) -> torch.Tensor:
    """(batch, 2): the loss and the number of targets of each row. On the device, which nothing waits for here."""
    losses = engine.row_losses(batch).double()
    targets = (batch.labels != IGNORED).sum(dim=1).to(losses, non_blocking=True)
    return torch.stack([losses, targets], dim=1)


def _interval_of_all(world: World, rows: Sequence[torch.Tensor]) -> Interval | None:
    """Of the rows of all ranks, in an order that does not depend on who has which."""
    own = torch.cat([torch.empty(0, 2, dtype=torch.float64), *(some.cpu() for some in rows)]).tolist()
    parts = world.gather_objects(own if world.tensor_rank == 0 else [])

    def interval() -> Interval | None:
        every = sorted(row for part in parts for row in part)
        return _interval([loss for loss, _ in every], [number for _, number in every])

    return world.first_rank(interval)
