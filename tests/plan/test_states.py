"""The ledger's model states are, byte for byte, what the engine holds on real ranks, under every stage."""

import json
from pathlib import Path

import pytest
from held_state_cases import held_bytes, snapshot_bytes
from tiny_models import write_tiny_model
from worlds import Worlds

from megatune.plan import snapshot
from megatune.plan.layout import Layout, Offload
from megatune.plan.states import optimizer_bytes, rank_states
from megatune.plan.weights import count_model

pytestmark = [pytest.mark.world, pytest.mark.timeout(900)]  # the first run on a machine compiles for minutes


def four_ranks(tp: int, stage: int, offload: Offload = "none") -> Layout:
    return Layout(
        tensor_parallel=tp,
        data_parallel=4 // tp,
        micro_batch=1,
        accumulation=1,
        gradient_checkpointing=False,
        offload=offload,
        zero_stage=stage,
    )


@pytest.mark.parametrize(
    ("name", "tp", "precision", "optimizer", "offload", "stage"),
    [
        ("gpt2", 1, "bf16", "adamw", "none", 3),
        ("llama", 2, "bf16", "adamw", "none", 3),
        ("opt", 2, "fp32", "adagrad", "none", 3),
        ("gpt_neox", 1, "fp32", "sgd", "none", 3),
        ("llama", 2, "bf16", "adamw", "optimizer", 3),
        ("llama", 2, "bf16", "adamw", "none", 0),
        ("opt", 2, "fp32", "adamw", "none", 0),
        ("gpt2", 1, "bf16", "adamw", "none", 1),
        ("llama", 2, "bf16", "sgd", "none", 1),
        ("gpt2", 1, "bf16", "adamw", "none", 2),
        ("llama", 2, "bf16", "adagrad", "none", 2),
        ("llama", 2, "bf16", "adamw", "optimizer", 2),
    ],
)
def test_states_of_the_first_rank_are_exact(
    worlds: Worlds,
    session_folder: Path,
    extensions: Path,
    name: str,
    tp: int,
    precision: str,
    optimizer: str,
    offload: Offload,
    stage: int,
) -> None:
    folder = write_tiny_model(name, session_folder)
    model = count_model(json.loads((folder / "config.json").read_text()))
    layout = four_ranks(tp, stage, offload)

    held = worlds.run(4, held_bytes, str(folder), tp, precision, optimizer, offload, stage, str(extensions))[
        0
    ]

    states = rank_states(
        model,
        layout,
        precision=precision,
        bytes_a_master=optimizer_bytes(optimizer),
        in_one_group=optimizer == "adagrad",
    )
    assert states.weights == held.weights
    assert states.gradients + states.host_gradients == held.gradients
    # Stages 1 and 2 round new weights on the host before they go back: a buffer that is no optimizer's.
    staging = states.weights // 2 if offload == "optimizer" and stage == 2 else 0
    assert states.optimizer + states.host_optimizer - staging == held.optimizer


@pytest.mark.parametrize(
    ("name", "tp", "precision", "optimizer", "offload", "stage"),
    [
        ("llama", 2, "bf16", "adamw", "none", 3),
        ("gpt2", 1, "bf16", "adamw", "optimizer", 3),
        ("opt", 2, "fp32", "adagrad", "none", 2),
        ("gpt2", 1, "bf16", "adamw", "none", 1),
        ("llama", 1, "bf16", "sgd", "none", 0),
    ],
)
def test_a_snapshot_for_a_save_behind_training_is_exact(
    worlds: Worlds,
    session_folder: Path,
    extensions: Path,
    name: str,
    tp: int,
    precision: str,
    optimizer: str,
    offload: Offload,
    stage: int,
) -> None:
    folder = write_tiny_model(name, session_folder)
    model = count_model(json.loads((folder / "config.json").read_text()))

    held = worlds.run(
        4, snapshot_bytes, str(folder), tp, precision, optimizer, offload, stage, str(extensions)
    )

    expected = snapshot.snapshot_bytes(
        model,
        four_ranks(tp, stage, offload),
        bytes_a_master=optimizer_bytes(optimizer),
        in_one_group=optimizer == "adagrad",
    )
    assert held[0] == max(held) == expected
