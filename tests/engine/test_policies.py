"""A shipped DeepSpeed policy changes memory and messages, not what is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from policy_cases import losses_under
from tiny_models import write_tiny_model
from worlds import Worlds

pytestmark = pytest.mark.world

POLICIES = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
# fp16 needs hardware that has it; tests/plan/test_ds_config.py holds what reaches DeepSpeed.
ON_CPU = [path for path in POLICIES if "fp16" not in json.loads(path.read_text())]


def settings_for(policy: Path) -> dict[str, Any]:
    """The run file's side of a policy: its precision and its offload."""
    content = json.loads(policy.read_text())
    zero = content["zero_optimization"]
    offload = "all" if "offload_param" in zero else "optimizer" if "offload_optimizer" in zero else "none"
    return {"precision": "bf16" if "bf16" in content else "fp32", "parallel": {"offload": offload}}


@pytest.mark.parametrize("policy", ON_CPU, ids=lambda path: path.stem)
def test_a_policy_trains_like_deepspeeds_defaults(worlds: Worlds, session_folder: Path, policy: Path) -> None:
    folder, settings = str(write_tiny_model("llama", session_folder)), settings_for(policy)
    settings["train"] = {"optimizer": "adamw", "momentum": 0.0}

    default = worlds.run(4, losses_under, folder, None, settings, 2)[0]
    ours = worlds.run(4, losses_under, folder, str(policy), settings, 2)[0]

    assert ours == pytest.approx(default, rel=1e-6)
    assert ours[-1] != ours[0]
