"""A model that also reads images is trained on text alone: its tower stays as it was, and is exported."""

from pathlib import Path
from typing import Any

import pytest
from worlds import Worlds

pytestmark = pytest.mark.world

_TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
         "intermediate_size": 96, "vocab_size": 101, "sliding_window": 8, "query_pre_attn_scalar": 24,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
# As many layers as the language model: which blocks are meant cannot be told from their number.
_TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
          "image_size": 28, "patch_size": 14}  # fmt: skip


def _steps(folder: str, tp: int) -> tuple[list[float], dict[str, Any]]:
    """Losses of four steps with weight decay, and the weights after them."""
    from parity_steps import SEQUENCES, batches, plain_engine, run_steps, tiny_run, world_of, zero_engine

    run = tiny_run(folder, max(1, tp), train={"weight_decay": 0.1})
    engine = zero_engine(run, world_of(tp), micro=SEQUENCES // 2) if tp else plain_engine(run)
    losses, _ = run_steps(engine, batches(4), accumulation=1, learning_rate=0.1)
    return losses, {name: weight.float().numpy().copy() for name, weight in engine.weights(master=True)}


@pytest.fixture(scope="module")
def folder(session_folder: Path) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gemma3", text_config=_TEXT, vision_config=_TOWER, image_token_index=5, mm_tokens_per_image=4
    )
    path = session_folder / "gemma3-with-images"
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def test_a_tower_that_no_text_reaches_keeps_its_weights_at_every_layout(worlds: Worlds, folder: Path) -> None:
    from parity_steps import plain_engine, tiny_run

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
