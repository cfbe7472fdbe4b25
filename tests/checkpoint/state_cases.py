"""What ranks do in the tests of a rank's training state: take it out of one engine, put it into another."""

import os
from pathlib import Path
from typing import Any

import torch
from parity_steps import SEQUENCES, batches, run_steps, tiny_run, world_of, zero_engine
from waiting_saves import save_checkpoint

from megatune.checkpoint.read import find_checkpoint, open_state, restore_generators
from megatune.checkpoint.saved_state import SavedPieces
from megatune.checkpoint.weights_index import describe_weights
from megatune.checkpoint.write import Shared
from megatune.engine.base import TrainingEngine
from megatune.errors import CheckpointError


def resume_engine(
    folder: str, tp: int, sections: dict[str, Any], checkpoints: Path, extensions: str
) -> dict[str, Any]:
    """Losses and norms of steps 3 and 4, the same after a save and load, and the weights that differ."""
    os.environ["TORCH_EXTENSIONS_DIR"] = extensions
    engine = _engine(folder, tp, sections)
    steps = batches(4)
    run_steps(engine, steps[:2], accumulation=1, learning_rate=0.01)
    saved = save(engine, checkpoints, 2)
    went_on = run_steps(engine, steps[2:], accumulation=1, learning_rate=0.01)
    expected = _masters(engine)
    resumed = _engine(folder, tp, sections)
    state = load(resumed, saved)
    again = run_steps(resumed, steps[2:], accumulation=1, learning_rate=0.01)
    unequal = [name for name, value in _masters(resumed).items() if not torch.equal(value, expected[name])]
    return {"went on": went_on, "resumed": again, "unequal": unequal, "kinds": sorted(state.kinds)}


def _engine(folder: str, tp: int, sections: dict[str, Any]) -> TrainingEngine:
    world = world_of(tp)
    return zero_engine(tiny_run(folder, tp, **sections), world, micro=SEQUENCES // world.data_parallel)


def save(engine: TrainingEngine, checkpoints: Path, step: int) -> Path:
    """Save `engine` as the training loop does."""
    return save_checkpoint(checkpoints, world=engine.world, state=engine.state(), shared=shared(engine, step))


def load(engine: TrainingEngine, saved: Path) -> SavedPieces:
    """Put what `saved` holds into `engine`, whatever layout it has, as the training loop does."""
    found, _ = find_checkpoint(saved.parent, str(saved), engine.world)
    assert found is not None
    weights = describe_weights(engine.built, engine.divisions)
    state = open_state(found, weights, engine.world, is_replicated=engine.is_replicated)
    engine.load_state(state)
    restore_generators(found, engine.world)
    return state


def shared(engine: TrainingEngine, step: int, **changes: Any) -> Shared:
    """What the first rank adds to the ranks' pieces."""
    values = {
        "step": step,
        "training": {},
        "weights": describe_weights(engine.built, engine.divisions),
        "write_model": engine.built.source.copy_without_weights,
        **changes,
    }
    return Shared(**values)


def _masters(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in engine.weights(master=True)}


def try_to_save(folder: str, checkpoints: str, step: int) -> str:
    """Save an untrained model; the error's words, or the folder."""
    engine = _engine(folder, 2, {})
    try:
        return str(save(engine, Path(checkpoints), step))
    except CheckpointError as error:
        return f"CheckpointError: {error}"


def fail_to_describe(folder: str, checkpoints: str) -> str:
    """Save with a first rank that cannot copy the model's files; the error's words on this rank."""
    engine = _engine(folder, 2, {})

    def write_model(target: Path) -> None:
        del target
        raise TypeError("a model nobody can copy")

    try:
        save_checkpoint(
            Path(checkpoints),
            world=engine.world,
            state=engine.state(),
            shared=shared(engine, 1, write_model=write_model),
        )
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
