"""What ranks do in the step tests: `train_step` on the same documents, laid out in different ways."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from parity_steps import plain_engine, tiny_run, world_of, zero_engine
from tiny_models import VOCABULARY

from megatune.data.batches import Batch, collate
from megatune.data.examples import Example
from megatune.train.step import train_step

NUM_STEPS = 5
NUM_DOCUMENTS = 9
WITHOUT_TARGETS = 8
"""The number of the document that no loss is taken on."""

Rows = list[list[int]]
"""Rows of a micro-batch, each a list of document numbers."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to train on the documents."""

    layout: list[list[Rows]]
    """Data-parallel rank -> micro-batch -> rows."""
    tp: int = 1
    model: str = "gpt2"
    settings: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 0.1

    @property
    def num_ranks(self) -> int:
        return len(self.layout) * self.tp


@dataclass(frozen=True)
class Trace:
    """What came out, on rank 0."""

    losses: list[float]
    norms: list[float | None]
    targets: list[int]
    weights: dict[str, Any]


def documents_of_step(step: int) -> list[Example]:
    """The documents of a step, 3 to 20 tokens long; about 60 % of the tokens are targets."""
    draw = np.random.default_rng(100 + step)
    found = []
    for number in range(NUM_DOCUMENTS):
        length = int(draw.integers(3, 21))
        is_target = draw.random(length) < (0 if number == WITHOUT_TARGETS else 0.6)
        if number != WITHOUT_TARGETS:
            is_target[-1] = True
        found.append(Example(draw.integers(0, VOCABULARY, length, dtype=np.int32), is_target))
    return found


def batches_of(case: Case, step: int, data_rank: int) -> list[Batch]:
    """The micro-batches of one data-parallel rank."""
    documents = documents_of_step(step)
    return [
        collate([[documents[number] for number in row] for row in rows], pad_id=0)
        for rows in case.layout[data_rank]
    ]


def train_case(folder: str, case: Case, *, plain: bool = False) -> Trace:
    """Train one case; `plain`: by the reference engine, in one process."""
    run = tiny_run(folder, case.tp, **case.settings)
    micro_batches = len(case.layout[0])
    engine: Any = (
        plain_engine(run) if plain else zero_engine(run, world_of(case.tp), accumulation=micro_batches)
    )
    losses, norms, targets = [], [], []
    for step in range(NUM_STEPS):
        result = train_step(
            engine,
            batches_of(case, step, engine.world.data_rank),
            case.learning_rate,
            stop_asked=False,
            peak_memory_bytes=0,
        )
        losses.append(result.loss)
        norms.append(result.outcome.grad_norm)
        targets.append(result.target_tokens)
    weights = {name: value.float().numpy().copy() for name, value in engine.weights(master=True)}
    return Trace(losses, norms, targets, weights)


def train_cases(folders: dict[str, str], cases: dict[str, Case], plain: bool) -> dict[str, Trace]:
    """The traces of all `cases`, which need equally many ranks."""
    return {name: train_case(folders[case.model], case, plain=plain) for name, case in cases.items()}
