"""Offload moves the optimizer, and with `all` the weights, to host memory; the numbers stay."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from option_cases import train_offloaded
from step_cases import Case, Trace
from tiny_models import write_tiny_model
from worlds import Worlds

pytestmark = [pytest.mark.world, pytest.mark.timeout(900)]  # the first run on a machine compiles for minutes

OPTIMIZERS = ["adamw", "adam", "sgd", "adagrad"]
SHARED = [[[[0], [1, 2], [3]], [[4]]], [[[5], [6]], [[7, 8]]]]


@pytest.fixture(scope="module")
def traces(worlds: Worlds, session_folder: Path, extensions: Path) -> dict[str, Trace]:
    folders = {"llama": str(write_tiny_model("llama", session_folder))}
    found: dict[str, Trace] = {}
    for optimizer in OPTIMIZERS:
        train: dict[str, Any] = {"optimizer": optimizer, "weight_decay": 0.1, "adam_epsilon": 1e-5}
        for tp in (1, 2):
            base = Case(layout=SHARED, model="llama", tp=tp, settings={"train": train}, learning_rate=0.01)
            cases = {
                f"{optimizer} tp={tp} {offload}": replace(
                    base, settings={"train": train, "parallel": {"offload": offload}}
                )
                for offload in ("none", "optimizer", "all")
            }
            found |= worlds.run(base.num_ranks, train_offloaded, folders, cases, str(extensions))[0]
    return found


@pytest.mark.parametrize("offload", ["optimizer", "all"])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_offload_trains_like_no_offload(
    traces: dict[str, Trace], optimizer: str, tp: int, offload: str
) -> None:
    found, expected = traces[f"{optimizer} tp={tp} {offload}"], traces[f"{optimizer} tp={tp} none"]

    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    assert found.norms == pytest.approx(expected.norms, rel=1e-4)
    for name, weight in expected.weights.items():
        assert np.abs(found.weights[name] - weight).max() < 1e-5, name
