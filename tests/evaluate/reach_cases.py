"""What ranks do in the tests of reach: documents side by side and alone, through the engine."""

from dataclasses import dataclass
from typing import Any

import torch
from parity_steps import plain_engine, tiny_run, world_of, zero_engine
from tiny_models import VOCABULARY

from megatune.errors import ModelError
from megatune.evaluate.reach_check import Reach, check_reach, measure_reach

LENGTHS = (11, 17)


@dataclass(frozen=True)
class Packing:
    """What was found for one model, on one rank."""

    reach: Reach
    """Before the check, which may give the model its masks."""
    answer: str
    """Of the check, or why it refused."""
    is_refused: bool
    reach_after: Reach
    alone: float
    """Largest difference between a logit of the packed second document and that document's alone, after it."""


def pack_models(folders: dict[str, str], tp: int) -> dict[str, Packing]:
    """Pack two documents with every model; `tp` 0 is the plain engine."""
    found = {}
    for name, folder in folders.items():
        run = tiny_run(folder, max(1, tp))
        engine: Any = plain_engine(run) if tp == 0 else zero_engine(run, world_of(tp))
        reach = measure_reach(engine, packed=True)
        answer, is_refused = _answer(engine)
        after = measure_reach(engine, packed=True)
        found[name] = Packing(reach, answer, is_refused, after, _distance_to_alone(engine))
    return found


def _answer(engine: Any) -> tuple[str, bool]:
    try:
        return check_reach(engine, packed=True), False
    except ModelError as error:
        return str(error), True


def _distance_to_alone(engine: Any) -> float:
    first, second = LENGTHS
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, VOCABULARY, (1, first + second), generator=generator)
    positions = torch.cat([torch.arange(first), torch.arange(second)])[None]
    with engine.evaluating():
        packed = engine.logits(ids, positions)[:, first:]
        alone = engine.logits(ids[:, first:], positions[:, first:])
    return float((packed - alone).abs().max())
