"""What ranks do in the tests of changed layouts: save on one, go on from all."""

from pathlib import Path
from typing import Any

from parity_steps import SEQUENCES, batches, run_steps, tiny_run, world_of, zero_engine
from state_cases import load, save

from megatune.engine.base import TrainingEngine

Trace = tuple[list[float], list[float]]
RATE = 1e-3
SETTINGS: dict[str, Any] = {"train": {"optimizer": "adamw", "weight_decay": 0.1, "learning_rate": RATE}}


def _engine(folder: str, tp: int, accumulation: int, stage: int) -> TrainingEngine:
    world = world_of(tp)
    settings = SETTINGS | {"parallel": {"zero_stage": stage}}
    micro = SEQUENCES // world.data_parallel // accumulation
    return zero_engine(tiny_run(folder, tp, **settings), world, micro=micro, accumulation=accumulation)


def save_and_go_on(
    folders: dict[str, str], tp: int, checkpoints: str, stage: int = 3
) -> dict[str, tuple[str, Trace]]:
    """Model -> (checkpoint after two steps, losses and norms of the two that follow)."""
    found = {}
    for name, folder in folders.items():
        engine = _engine(folder, tp, 1, stage)
        steps = batches(4)
        run_steps(engine, steps[:2], accumulation=1, learning_rate=RATE)
        saved = save(engine, Path(checkpoints) / name, 2)
        found[name] = (str(saved), run_steps(engine, steps[2:], accumulation=1, learning_rate=RATE))
    return found


def go_on_from(
    folders: dict[str, str],
    tp: int,
    sources: dict[str, dict[Any, str]],
    target: str,
    accumulation: int,
    stage: int = 3,
) -> dict[tuple[str, Any], tuple[str, Trace, int]]:
    """(model, source) -> (what is saved again right after loading, losses and norms, bytes this rank read)."""
    found = {}
    for name, folder in folders.items():
        engine = _engine(folder, tp, accumulation, stage)
        for source, path in sources[name].items():
            state = load(engine, Path(path))
            saved = save(engine, Path(target) / name / str(source), 2)
            trace = run_steps(engine, batches(4)[2:], accumulation=accumulation, learning_rate=RATE)
            found[name, source] = (str(saved), trace, state.bytes_read)
    return found
