"""Promise 1: every family at every layout trains like one process (README shows this table)."""

from pathlib import Path
from typing import Any

import pytest
from tiny_models import TINY, write_tiny_model
from worlds import Worlds

pytestmark = pytest.mark.world

LAYOUTS = [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)]
STEPS = 6


@pytest.fixture(scope="module")
def traces(worlds: Worlds, session_folder: Path) -> dict[tuple[str, int, int], Any]:
    """(family, tp, dp) -> (losses, gradient norms, weights); one world of each size runs all families."""
    from parity_steps import train_traces

    folders = {name: str(write_tiny_model(name, session_folder)) for name in TINY}
    found: dict[tuple[str, int, int], Any] = {}
    for tp, dp in [(0, 0), *LAYOUTS]:
        found |= worlds.run(max(1, tp * dp), train_traces, folders, tp, dp, STEPS)[0]
    return found


@pytest.mark.parametrize(("tp", "dp"), LAYOUTS)
@pytest.mark.parametrize("family", TINY)
def test_a_layout_trains_like_one_process(
    traces: dict[tuple[str, int, int], Any], family: str, tp: int, dp: int
) -> None:
    losses, norms, weights = traces[family, tp, dp]
    expected_losses, expected_norms, expected_weights = traces[family, 0, 0]

    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert norms == pytest.approx(expected_norms, rel=1e-4)
    assert weights.keys() == expected_weights.keys()
    for name, expected in expected_weights.items():
        assert abs(weights[name] - expected).max() < 1e-5, name


def test_training_moves_the_weights_far_beyond_the_tolerance(
    traces: dict[tuple[str, int, int], Any], session_folder: Path
) -> None:
    from safetensors.numpy import load_file

    before = load_file(write_tiny_model("llama", session_folder) / "model.safetensors")
    after = traces["llama", 0, 0][2]
    assert (
        abs(after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]).max()
        > 1e-2
    )
