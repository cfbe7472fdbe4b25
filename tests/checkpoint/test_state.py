"""Every optimizer's state goes through a checkpoint and comes back bit for bit."""

from pathlib import Path
from typing import Any

import pytest
from state_cases import resume_engine
from tiny_models import write_tiny_model
from worlds import Worlds

from megatune.launch.extensions import ensure_built, extension_folder
from megatune.launch.processes import module_command

pytestmark = [pytest.mark.world, pytest.mark.timeout(900)]  # the first run on a machine compiles for minutes

ADAMW = {"train": {"optimizer": "adamw", "weight_decay": 0.1}}
CASES: dict[str, dict[str, Any]] = {
    "adamw": ADAMW,
    "adam": {"train": {"optimizer": "adam"}},
    "adagrad": {"train": {"optimizer": "adagrad"}},
    "sgd": {"train": {"optimizer": "sgd", "momentum": 0.0}},
    "sgd with momentum": {"train": {"optimizer": "sgd", "momentum": 0.9}},
    "bf16": {**ADAMW, "precision": "bf16"},
    "stage 0": {**ADAMW, "parallel": {"zero_stage": 0}},
    "stage 0 bf16": {**ADAMW, "parallel": {"zero_stage": 0}, "precision": "bf16"},
    "stage 1": {**ADAMW, "parallel": {"zero_stage": 1}},
    "stage 1 bf16": {**ADAMW, "parallel": {"zero_stage": 1}, "precision": "bf16"},
    "stage 1 sgd": {"train": {"optimizer": "sgd", "momentum": 0.9}, "parallel": {"zero_stage": 1}},
    "stage 2": {**ADAMW, "parallel": {"zero_stage": 2}},
    "stage 2 bf16": {**ADAMW, "parallel": {"zero_stage": 2}, "precision": "bf16"},
    "stage 2 adagrad": {"train": {"optimizer": "adagrad"}, "parallel": {"zero_stage": 2}},
    "stage 1 offload": {**ADAMW, "parallel": {"zero_stage": 1, "offload": "optimizer"}, "precision": "bf16"},
    "stage 2 offload": {**ADAMW, "parallel": {"zero_stage": 2, "offload": "optimizer"}, "precision": "bf16"},
    "no leaf modules": {**ADAMW, "parallel": {"leaf_modules": False}},
    "offload optimizer": {**ADAMW, "parallel": {"offload": "optimizer"}, "precision": "bf16"},
    "offload all": {**ADAMW, "parallel": {"offload": "all"}, "precision": "bf16"},
}
WITH_TENSOR_PARALLELISM = (
    "adamw",
    "adagrad",
    "bf16",
    "stage 0 bf16",
    "stage 1 bf16",
    "stage 2",
    "offload all",
)
LAYOUTS = [*((case, 1) for case in CASES), *((case, 2) for case in WITH_TENSOR_PARALLELISM)]
KINDS = {
    "adagrad": ["sum", "weight"],
    "stage 2 adagrad": ["sum", "weight"],
    "stage 1 sgd": ["momentum_buffer", "weight"],
    "sgd": ["weight"],
    "sgd with momentum": ["momentum_buffer", "weight"],
}


@pytest.fixture(scope="module")
def resumed(
    worlds: Worlds, session_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """(case, tp) -> what each of the ranks found."""
    folder = str(write_tiny_model("llama", session_folder))
    extensions = extension_folder()
    ensure_built(module_command("megatune.engine.build_ops", "cpu_adam"), extensions)
    checkpoints = tmp_path_factory.mktemp("state")
    found = {}
    for name, tp in LAYOUTS:
        saved = checkpoints / f"tp{tp}-{name}"
        found[name, tp] = worlds.run(2 * tp, resume_engine, folder, tp, CASES[name], saved, str(extensions))
    return found


@pytest.mark.parametrize(("case", "tp"), LAYOUTS)
def test_a_loaded_engine_goes_on_bit_for_bit(
    resumed: dict[tuple[str, int], list[dict[str, Any]]], case: str, tp: int
) -> None:
    for rank in resumed[case, tp]:
        assert rank["resumed"] == rank["went on"]
        assert rank["unequal"] == []
        assert rank["kinds"] == KINDS.get(case, ["exp_avg", "exp_avg_sq", "weight"])
