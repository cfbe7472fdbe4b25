"""A model that also reads images is trained on text alone: its tower stays as it was, and is exported."""

from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_tiny_model_with_images
from worlds import Worlds

pytestmark = pytest.mark.world


def _steps(folder: str, tp: int) -> tuple[list[float], dict[str, Any]]:
    """Losses of four steps with weight decay, and the weights after them."""
    from parity_steps import SEQUENCES, batches, plain_engine, run_steps, tiny_run, world_of, zero_engine

    run = tiny_run(folder, max(1, tp), train={"weight_decay": 0.1})
    engine = zero_engine(run, world_of(tp), micro=SEQUENCES // 2) if tp else plain_engine(run)
    losses, _ = run_steps(engine, batches(4), accumulation=1, learning_rate=0.1)
    return losses, {name: weight.float().numpy().copy() for name, weight in engine.weights(master=True)}


def test_a_tower_that_no_text_reaches_keeps_its_weights_at_every_layout(
    worlds: Worlds, session_folder: Path
) -> None:
    from parity_steps import plain_engine, tiny_run

    folder = write_tiny_model_with_images(session_folder)
    before = {
        name: weight.numpy() for name, weight in plain_engine(tiny_run(str(folder))).weights(master=True)
    }

    expected_losses, expected = worlds.run(1, _steps, str(folder), 0)[0]
    for tp, dp in ((1, 2), (2, 1), (2, 2)):
        losses, weights = worlds.run(tp * dp, _steps, str(folder), tp)[0]
        assert losses == pytest.approx(expected_losses, rel=1e-5)
        assert weights.keys() == expected.keys()
        for name, weight in weights.items():
            assert abs(weight - expected[name]).max() < 1e-5, name

    for name, weight in expected.items():
        is_tower = "vision_tower" in name or "multi_modal_projector" in name
        assert (weight == before[name]).all() == is_tower, name
