"""A shipped DeepSpeed policy changes memory and messages, not what is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from policy_cases import losses_under
from tiny_models import write_tiny_model
from worlds import Worlds

pytestmark = [pytest.mark.world, pytest.mark.timeout(900)]  # the first run on a machine compiles for minutes

POLICIES = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
# fp16 needs hardware that has it; tests/plan/test_ds_config.py holds what reaches DeepSpeed.
# The same for the kernels of quantized messages.
ON_CPU = [
    path for path in POLICIES if not any(word in path.read_text() for word in ('"fp16"', "zero_quantized"))
]


def settings_for(policy: Path, disk: Path) -> dict[str, Any]:
    """The run file's side of a policy: its precision, its stage and its offload."""
    content = json.loads(policy.read_text())
    zero = content["zero_optimization"]
    offload = "all" if "offload_param" in zero else "optimizer" if "offload_optimizer" in zero else "none"
    if policy.stem == "zero3_nvme":
        offload = f"nvme:{disk}"
    stage = 3 if zero["stage"] == "auto" else zero["stage"]
    precision = "bf16" if "bf16" in content else "fp32"
    return {"precision": precision, "parallel": {"offload": offload, "zero_stage": stage}}


def test_quantized_messages_are_refused_where_there_are_no_kernels() -> None:
    from megatune.engine.world import single_world
    from megatune.engine.zero import refuse_quantized
    from megatune.errors import ConfigError

    with pytest.raises(ConfigError, match=r"zero_quantized_weights and zero_quantized_gradients.*GPUs only"):
        refuse_quantized(json.loads(POLICIES[0].with_name("zero3_zeropp.json").read_text()), single_world())


@pytest.mark.parametrize(("toolkit", "told"), [(None, "there is none"), ("{}", "only {}, without bin/nvcc")])
def test_a_missing_compiler_for_their_kernels_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toolkit: str | None, told: str
) -> None:
    import torch.utils.cpp_extension

    from megatune.engine.accelerator import refuse_missing_toolkit
    from megatune.errors import ConfigError

    found = toolkit and toolkit.format(tmp_path)
    monkeypatch.setattr(torch.utils.cpp_extension, "CUDA_HOME", found)
    refuse_missing_toolkit(["cpu_adam"])
    with pytest.raises(ConfigError, match=rf"compiles with nvcc.*{told.format(tmp_path)}.*zero3_hpz"):
        refuse_missing_toolkit(["cpu_adam", "quantizer"])

    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin/nvcc").touch()
    monkeypatch.setattr(torch.utils.cpp_extension, "CUDA_HOME", str(tmp_path))
    refuse_missing_toolkit(["quantizer"])


@pytest.mark.parametrize("policy", ON_CPU, ids=lambda path: path.stem)
def test_a_policy_trains_like_deepspeeds_defaults(
    worlds: Worlds, session_folder: Path, extensions: Path, tmp_path: Path, policy: Path
) -> None:
    folder, settings = str(write_tiny_model("llama", session_folder)), settings_for(policy, tmp_path)
    settings["train"] = {"optimizer": "adamw", "momentum": 0.0}

    degree = 1 if "hpz" in policy.stem else 2  # hpZ is refused with tensor parallelism
    default = worlds.run(4, losses_under, folder, None, settings, degree, str(extensions))[0]
    ours = worlds.run(4, losses_under, folder, str(policy), settings, degree, str(extensions))[0]

    assert ours == pytest.approx(default, rel=1e-6)
    assert ours[-1] != ours[0]
