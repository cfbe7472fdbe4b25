"""Promise 1 beyond the tables: models that megatune knows nothing of train on two ranks like on one."""

from pathlib import Path
from typing import Any

import pytest
from other_models import write_other_model
from worlds import Worlds

pytestmark = pytest.mark.world

# Experts, latent attention, states that are carried on, convolutions, layers of several kinds.
OTHERS = (
    "apertus", "bamba", "deepseek_v3", "deepseek_v32", "falcon_h1", "gemma4_text", "glm4_moe",
    "gpt_bigcode", "granitemoehybrid", "hunyuan_v1_dense", "jamba", "lfm2_moe", "llama4_text", "mamba2", "minimax_m2",
    "mpt", "nemotron_h", "phimoe", "qwen3_5_moe_text", "qwen3_next", "recurrent_gemma", "zamba2",
)  # fmt: skip
STEPS = 3


@pytest.fixture(scope="module")
def traces(worlds: Worlds, session_folder: Path) -> dict[tuple[str, int, int], Any]:
    """(type, tp, dp) -> (losses, gradient norms, weights)."""
    from parity_steps import train_traces

    folders = {name: str(write_other_model(name, session_folder / "others")) for name in OTHERS}
    found: dict[tuple[str, int, int], Any] = {}
    for tp, dp in [(0, 0), (1, 2)]:
        found |= worlds.run(max(1, tp * dp), train_traces, folders, tp, dp, STEPS)[0]
    return found


@pytest.mark.parametrize("family", OTHERS)
def test_two_ranks_train_like_one(traces: dict[tuple[str, int, int], Any], family: str) -> None:
    losses, norms, weights = traces[family, 1, 2]
    expected_losses, expected_norms, expected_weights = traces[family, 0, 0]

    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert norms == pytest.approx(expected_norms, rel=1e-4)
    assert weights.keys() == expected_weights.keys()
    for name, expected in expected_weights.items():
        assert abs(weights[name] - expected).max() < 1e-5, name
