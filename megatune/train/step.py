"""One optimizer step."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import record_function

from megatune.data.batches import Batch
from megatune.engine.base import Engine, StepOutcome
from megatune.engine.own_time import StepTimes


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What all ranks agree on after a step."""

    loss: float
    """Mean cross-entropy in nats over the step's target tokens on all ranks; 0 when there are none."""
    target_tokens: int
    tokens: int
    squared_lengths: int
    outcome: StepOutcome
    stop_asked: bool
    """Some rank was asked to stop; all ranks see it after the same step."""
    saves_ready: bool
    """All ranks have done their part of the save in flight, if there is one."""
    cpu_seconds: float
    """Processor time of all ranks together."""
    peak_memory_bytes: list[int]
    """Each rank's, in rank order."""
    times: list[StepTimes]
    """Each rank's."""
    left_out: bool = False
    """`is_refused` said so: the weights are as before."""


def _nothing(*_: object) -> None:
    pass


def _no_times() -> StepTimes:
    return StepTimes(0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Listeners:
    """Who is told of what happens in a step, and asked about it; nobody where none is given."""

    beat: Callable[[str], None] = _nothing
    """Told what begins."""
    watch: Callable[[str], None] = _nothing
    """Told when the forward of a micro-batch begins and ends."""
    before_update: Callable[[], None] = _nothing
    """Told that weights are about to change."""
    times: Callable[[], StepTimes] = _no_times
    """Asked at the end what this rank has taken for the step."""


NOBODY = Listeners()


def train_step(
    engine: Engine,
    batches: Sequence[Batch],
    learning_rate: float,
    *,
    stop_asked: bool,
    peak_memory_bytes: int,
    save_ready: bool = True,
    is_refused: Callable[[float], bool] | None = None,
    listeners: Listeners = NOBODY,
) -> StepResult:
    """One optimizer step on this rank's micro-batches. Collective: every rank calls it.

    The loss is the mean over all target tokens of the step on all ranks, so it does not depend on
    how tokens fall into micro-batches, ranks or packed rows. `engine.backward` adds gradients over
    micro-batches and ranks. `is_refused` tells from the loss whether to leave the step out; it costs a
    small collective, and must answer the same on all ranks. `save_ready`: this rank has done its part of the save
    in flight.
    """
    world, cpu_started = engine.world, time.process_time()
    counts = torch.tensor([b.num_targets for b in batches], dtype=torch.float64, device=world.device).sum()
    num_targets = world.sum_over_data(counts)
    loss = _add_gradients(engine, batches, num_targets.clamp(min=1).float(), listeners)
    listeners.beat("optimizer step")
    agreed = world.sum_over_all(loss.double()).item() / world.tensor_parallel if is_refused else None
    left_out = is_refused is not None and agreed is not None and is_refused(agreed)
    listeners.before_update()
    with record_function("megatune::optimizer"):
        outcome = engine.step(learning_rate, leave_out=left_out)
    cpu_seconds = time.process_time() - cpu_started
    own = (
        loss,
        sum(b.num_tokens for b in batches),
        sum(b.sum_squared_lengths for b in batches),
        cpu_seconds,
    )
    flags = (stop_asked, not save_ready)
    sums, by_rank = _sum_over_all(
        engine, (*own, *map(float, flags)), (float(peak_memory_bytes), *listeners.times())
    )
    return StepResult(
        loss=sums[0] / world.tensor_parallel if agreed is None else agreed,
        target_tokens=round(num_targets.item()),
        tokens=round(sums[1] / world.tensor_parallel),
        squared_lengths=round(sums[2] / world.tensor_parallel),
        outcome=outcome,
        cpu_seconds=sums[3],
        stop_asked=sums[4] > 0,
        saves_ready=sums[5] == 0,
        peak_memory_bytes=[round(memory) for memory, *_ in by_rank],
        times=[StepTimes(*taken) for _, *taken in by_rank],
        left_out=left_out,
    )


def _add_gradients(
    engine: Engine, batches: Sequence[Batch], divisor: torch.Tensor, listeners: Listeners
) -> torch.Tensor:
    """Forward and backward of every micro-batch; this rank's part of the step's loss."""
    loss = torch.zeros((), device=engine.world.device)
    for index, batch in enumerate(batches):
        listeners.beat("forward and backward")
        listeners.watch("before forward")
        part = engine.loss(batch) / divisor
        listeners.watch("after forward")
        engine.backward(part, is_last=index == len(batches) - 1)
        loss += part.detach()
    return loss


def _sum_over_all(
    engine: Engine, own: Sequence[torch.Tensor | float], apart: Sequence[float]
) -> tuple[list[float], list[list[float]]]:
    """One collective for everything a step reports: the sums of `own`, and each rank's `apart`."""
    world, num_sums, width = engine.world, len(own), len(apart)
    values = torch.zeros(num_sums + width * world.size, dtype=torch.float64, device=world.device)
    for index, value in enumerate(own):
        values[index] = value
    for index, value in enumerate(apart, start=num_sums + width * world.rank):
        values[index] = value
    found: list[float] = world.sum_over_all(values).tolist()
    return found[:num_sums], [found[at : at + width] for at in range(num_sums, len(found), width)]
