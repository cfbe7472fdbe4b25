"""A block whose end DeepSpeed does not see leaves its gradients where they are: no step is taken without them."""

from pathlib import Path

import pytest
from worlds import Worlds

pytestmark = pytest.mark.world

# The blocks of the first GPT return a list.
_CONFIG = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 101, "n_positions": 64, "attn_pdrop": 0.0,
           "resid_pdrop": 0.0, "embd_pdrop": 0.0}  # fmt: skip


def _losses(folder: str, leaf_modules: bool | None) -> list[float] | str:
    """Of three steps under ZeRO-3, or of plain torch for None; or the words of an error."""
    from parity_steps import SEQUENCES, batches, plain_engine, run_steps, tiny_run, world_of, zero_engine

    from megatune.errors import MegatuneError

    run = tiny_run(folder, 1, parallel={"leaf_modules": leaf_modules is True})
    engine = (
        plain_engine(run) if leaf_modules is None else zero_engine(run, world_of(1), micro=SEQUENCES // 2)
    )
    try:
        return run_steps(engine, batches(3), accumulation=1, learning_rate=0.03)[0]
    except MegatuneError as error:
        return str(error)


def test_it_is_refused_and_trains_the_way_that_the_refusal_names(
    worlds: Worlds, session_folder: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = session_folder / "first-gpt"
    AutoModelForCausalLM.from_config(AutoConfig.for_model("openai-gpt", **_CONFIG)).save_pretrained(folder)

    refused, trained = (worlds.run(2, _losses, str(folder), leaf)[0] for leaf in (True, False))

    assert (
        "has not taken the gradients of 24 parameters, transformer.h.0.attn.c_attn.weight among them"
        in refused
    )
    assert "Use parallel.leaf_modules=false." in refused
    assert trained == pytest.approx(worlds.run(1, _losses, str(folder), None)[0], rel=1e-5)
