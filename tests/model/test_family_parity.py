"""Promise 1: every family trains like one process on whatever layout.

All layouts of all families take eight ranks on two cores for minutes: `benchmarks/parity_table.py` runs them, and
docs/parity.md shows them. Here every family runs where its layers are cut beside ZeRO-3 and cut finest, and those
whose layers are cut in a way of their own run everywhere.
"""

import math
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TINY, write_tiny_model
from worlds import Worlds

from megatune.plan.families import FAMILIES

pytestmark = pytest.mark.world

LAYOUTS = [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)]
LAYOUTS_OF_ALL = [(2, 2), (4, 1)]
# Transposed and uneven heads; heads interleaved in a fused weight; the same by groups; uneven pairs and a tied head;
# gate and up in one weight; one key-value head; norms over all heads; experts as stacks; interleaved, with sinks.
EVERYWHERE = (
    "gpt2-5-heads",
    "bloom",
    "falcon",
    "llama-tied-9-heads",
    "phi3",
    "gemma",
    "olmo2",
    "qwen2_moe",
    "gpt_oss",
)
CASES = [(name, *layout) for name in TINY for layout in (LAYOUTS if name in EVERYWHERE else LAYOUTS_OF_ALL)]
STEPS = 6


@pytest.fixture(scope="module")
def traces(worlds: Worlds, session_folder: Path) -> dict[tuple[str, int, int], Any]:
    """(family, tp, dp) -> (losses, gradient norms, weights); one world of each size runs all families."""
    from parity_steps import train_traces

    folders = {name: str(write_tiny_model(name, session_folder)) for name in TINY}
    found: dict[tuple[str, int, int], Any] = worlds.run(1, train_traces, folders, 0, 0, STEPS)[0]
    for layout in LAYOUTS:
        some = {name: folders[name] for name, *where in CASES if tuple(where) == layout}
        found |= worlds.run(math.prod(layout), train_traces, some, *layout, STEPS)[0]
    return found


# Fewer key-value heads than ranks: two ranks share one, or (9 heads) shares are unequal.
GROUPED = {
    **{
        name: {"num_attention_heads": 8, "num_key_value_heads": 2}
        for name, (model_type, _) in TINY.items()
        if FAMILIES[model_type].can_share_kv_heads and TINY[name][1].get("num_key_value_heads")
    },
    # A plain feed-forward layer in one block, experts in the other.
    "qwen3_moe": {"num_attention_heads": 8, "num_key_value_heads": 2, "mlp_only_layers": [1]},
    "llama-tied-9-heads": {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3},
}
GROUPED_LAYOUTS = [(4, 1, GROUPED), (4, 2, ("llama-tied-9-heads", "qwen3"))]


@pytest.fixture(scope="module")
def grouped_traces(worlds: Worlds, session_folder: Path) -> dict[tuple[str, int, int], Any]:
    """As `traces`, of the models of GROUPED."""
    from parity_steps import train_traces

    folders = {name: str(write_tiny_model(name, session_folder, **GROUPED[name])) for name in GROUPED}
    found: dict[tuple[str, int, int], Any] = {}
    for tp, dp, names in [(0, 0, GROUPED), *GROUPED_LAYOUTS]:
        some = {name: folders[name] for name in names}
        found |= worlds.run(max(1, tp * dp), train_traces, some, tp, dp, STEPS)[0]
    return found


@pytest.mark.parametrize(("family", "tp", "dp"), CASES)
def test_a_layout_trains_like_one_process(
    traces: dict[tuple[str, int, int], Any], family: str, tp: int, dp: int
) -> None:
    _assert_alike(traces[family, tp, dp], traces[family, 0, 0])


@pytest.mark.parametrize(
    ("family", "tp", "dp"), [(name, tp, dp) for tp, dp, names in GROUPED_LAYOUTS for name in names]
)
def test_ranks_that_share_a_key_value_head_train_like_one_process(
    grouped_traces: dict[tuple[str, int, int], Any], family: str, tp: int, dp: int
) -> None:
    _assert_alike(grouped_traces[family, tp, dp], grouped_traces[family, 0, 0])


def _assert_alike(found: Any, reference: Any) -> None:
    losses, norms, weights = found
    expected_losses, expected_norms, expected_weights = reference

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
