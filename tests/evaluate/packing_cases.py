"""What ranks do in the tests of packing: documents side by side and alone, through the engine."""

from dataclasses import dataclass
from typing import Any

import torch
from parity_steps import plain_engine, tiny_run, world_of, zero_engine
from tiny_models import VOCABULARY

from megatune.errors import ModelError
from megatune.evaluate.packing_check import measure_leak, refuse_leaking_packing

LENGTHS = (11, 17)


@dataclass(frozen=True)
class Packing:
    """What was found for one model, on one rank."""

    own: float
    other: float
    refusal: str | None
    alone: float
    """Largest difference between a logit of the packed second document and that document's alone."""


def pack_models(folders: dict[str, str], tp: int) -> dict[str, Packing]:
    """Pack two documents with every model; `tp` 0 is the plain engine."""
    found = {}
    for name, folder in folders.items():
        run = tiny_run(folder, max(1, tp))
        engine: Any = plain_engine(run) if tp == 0 else zero_engine(run, world_of(tp))
        measure = measure_leak(engine)
        found[name] = Packing(measure.own, measure.other, _refusal(engine), _distance_to_alone(engine))
    return found


def _refusal(engine: Any) -> str | None:
    try:
        refuse_leaking_packing(engine)
    except ModelError as error:
        return str(error)
    return None


def _distance_to_alone(engine: Any) -> float:
    first, second = LENGTHS
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, VOCABULARY, (1, first + second), generator=generator)
    positions = torch.cat([torch.arange(first), torch.arange(second)])[None]
    with engine.evaluating():
        packed = engine.logits(ids, positions)[:, first:]
        alone = engine.logits(ids[:, first:], positions[:, first:])
    return float((packed - alone).abs().max())
