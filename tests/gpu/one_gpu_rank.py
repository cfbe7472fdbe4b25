"""The only rank of a world, in a process of its own: `python one_gpu_rank.py MODEL PRECISION ANSWER.json`.

It trains with ZeRO and with the reference on the device that DeepSpeed chooses, goes on from a
saved state, and writes down what came out.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from parity_steps import SEQUENCES, batches, plain_engine, run_steps, tiny_run, world_of, zero_engine
from state_cases import load, save

from megatune.engine.base import TrainingEngine
from megatune.engine.start import leave
from megatune.launch.ports import reserve_port

STEPS, SAVED_AFTER = 4, 2
RATE = 0.05


def main(folder: str, precision: str) -> dict[str, object]:
    """Losses and norms of both engines, and how far weights lie apart: largest differences."""
    run, steps = tiny_run(folder, precision=precision), batches(STEPS)
    zero = zero_engine(run, world_of(1), micro=SEQUENCES)
    losses, norms = _train(zero, steps[:SAVED_AFTER])
    resumed = zero_engine(run, zero.world, micro=SEQUENCES)
    with tempfile.TemporaryDirectory() as checkpoints:
        saved = save(zero, Path(checkpoints), SAVED_AFTER)
        later = _train(zero, steps[SAVED_AFTER:])
        load(resumed, saved)
        again = _train(resumed, steps[SAVED_AFTER:])
    # fp16 needs a loss scale that plain torch has not got, so its reference is exact instead.
    exact = tiny_run(folder, precision="fp32" if precision == "fp16" else precision)
    plain = plain_engine(exact, zero.world.device)
    before = _masters(plain)
    expected = _train(plain, steps)
    return {
        "device": zero.world.device.type,
        "dtypes": sorted({str(parameter.dtype) for parameter in zero.built.model.parameters()}),
        "losses": losses + later[0],
        "norms": norms + later[1],
        "expected_losses": expected[0],
        "expected_norms": expected[1],
        "weights_apart": _apart(_masters(zero), _masters(plain)),
        "weights_moved": _apart(before, _masters(plain)),
        "resumed": [later == again, _apart(_masters(zero), _masters(resumed))],
    }


def _train(engine: object, steps: list[object]) -> tuple[list[float], list[float]]:
    return run_steps(engine, steps, accumulation=1, learning_rate=RATE)  # type: ignore[arg-type]


def _masters(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in engine.weights(master=True)}


def _apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


if __name__ == "__main__":
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    with reserve_port() as port:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        answer = main(sys.argv[1], sys.argv[2])
    leave()
    Path(sys.argv[3]).write_text(json.dumps(answer))
