"""The ledger's model states are, byte for byte, what DeepSpeed's engine holds on real ranks."""

import json
from pathlib import Path

import pytest
from held_state_cases import held_bytes
from tiny_models import write_tiny_model
from worlds import Worlds

from megatune.plan.layout import Layout, Offload
from megatune.plan.states import optimizer_bytes, rank_states
from megatune.plan.weights import count_model

pytestmark = pytest.mark.world


@pytest.mark.parametrize(
    ("name", "tp", "precision", "optimizer", "offload"),
    [
        ("gpt2", 1, "bf16", "adamw", "none"),
        ("llama", 2, "bf16", "adamw", "none"),
        ("opt", 2, "fp32", "adagrad", "none"),
        ("gpt_neox", 1, "fp32", "sgd", "none"),
        ("llama", 2, "bf16", "adamw", "optimizer"),
    ],
)
def test_states_of_the_first_rank_are_exact(
    worlds: Worlds,
    session_folder: Path,
    name: str,
    tp: int,
    precision: str,
    optimizer: str,
    offload: Offload,
) -> None:
    folder = write_tiny_model(name, session_folder)
    model = count_model(json.loads((folder / "config.json").read_text()))
    layout = Layout(
        tensor_parallel=tp,
        data_parallel=4 // tp,
        micro_batch=1,
        accumulation=1,
        gradient_checkpointing=False,
        offload=offload,
    )

    held = worlds.run(4, held_bytes, str(folder), tp, precision, optimizer, offload)[0]

    states = rank_states(model, layout, precision=precision, bytes_a_master=optimizer_bytes(optimizer))
    assert states.weights == held["weights"]
    assert states.gradients + states.host_gradients == held["gradients"] + held["gradients_for_the_step"]
    assert states.optimizer + states.host_optimizer == held["optimizer"]
