"""The ledger's model states are, byte for byte, what the engine holds on real ranks, under every stage."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from held_state_cases import held_bytes, snapshot_bytes
from tiny_models import write_tiny_model
from worlds import Worlds

from megatune.plan import snapshot
from megatune.plan.layout import Layout, Offload
from megatune.plan.states import optimizer_bytes, rank_states
from megatune.plan.weights import count_model

pytestmark = [pytest.mark.world, pytest.mark.timeout(900)]  # the first run on a machine compiles for minutes


class Case(NamedTuple):
    """A model on four ranks."""

    name: str
    tp: int
    precision: str
    optimizer: str
    offload: Offload
    stage: int

    def __str__(self) -> str:
        return "-".join(map(str, self))

    @property
    def layout(self) -> Layout:
        return Layout(
            tensor_parallel=self.tp,
            data_parallel=4 // self.tp,
            micro_batch=1,
            accumulation=1,
            gradient_checkpointing=False,
            offload=self.offload,
            zero_stage=self.stage,
        )


@pytest.mark.parametrize(
    "case",
    [
        Case("gpt2", 1, "bf16", "adamw", "none", 3),
        Case("llama", 2, "bf16", "adamw", "none", 3),
        Case("opt", 2, "fp32", "adagrad", "none", 3),
        Case("gpt_neox", 1, "fp32", "sgd", "none", 3),
        Case("llama", 2, "bf16", "adamw", "optimizer", 3),
        Case("llama", 2, "bf16", "adamw", "none", 0),
        Case("opt", 2, "fp32", "adamw", "none", 0),
        Case("gpt2", 1, "bf16", "adamw", "none", 1),
        Case("llama", 2, "bf16", "sgd", "none", 1),
        Case("gpt2", 1, "bf16", "adamw", "none", 2),
        Case("llama", 2, "bf16", "adagrad", "none", 2),
        Case("llama", 2, "bf16", "adamw", "optimizer", 2),
    ],
    ids=str,
)
def test_states_of_the_first_rank_are_exact(
    worlds: Worlds,
    session_folder: Path,
    extensions: Path,
    case: Case,
) -> None:
    folder = write_tiny_model(case.name, session_folder)
    model = count_model(json.loads((folder / "config.json").read_text()))

    held = worlds.run(4, held_bytes, str(folder), *case[1:], str(extensions))[0]

    states = rank_states(
        model,
        case.layout,
        precision=case.precision,
        bytes_a_master=optimizer_bytes(case.optimizer),
        in_one_group=case.optimizer == "adagrad",
    )
    assert states.weights == held.weights
    assert states.gradients + states.host_gradients == held.gradients
    # Stages 1 and 2 round new weights on the host before they go back: a buffer that is no optimizer's.
    staging = states.weights // 2 if case.offload == "optimizer" and case.stage == 2 else 0
    assert states.optimizer + states.host_optimizer - staging == held.optimizer


@pytest.mark.parametrize(
    "case",
    [
        Case("llama", 2, "bf16", "adamw", "none", 3),
        Case("gpt2", 1, "bf16", "adamw", "optimizer", 3),
        Case("opt", 2, "fp32", "adagrad", "none", 2),
        Case("gpt2", 1, "bf16", "adamw", "none", 1),
        Case("llama", 1, "bf16", "sgd", "none", 0),
    ],
    ids=str,
)
def test_a_snapshot_for_a_save_behind_training_is_exact(
    worlds: Worlds,
    session_folder: Path,
    extensions: Path,
    case: Case,
) -> None:
    folder = write_tiny_model(case.name, session_folder)
    model = count_model(json.loads((folder / "config.json").read_text()))

    held = worlds.run(4, snapshot_bytes, str(folder), *case[1:], str(extensions))

    expected = snapshot.snapshot_bytes(
        model,
        case.layout,
        bytes_a_master=optimizer_bytes(case.optimizer),
        in_one_group=case.optimizer == "adagrad",
    )
    assert held[0] == max(held) == expected
