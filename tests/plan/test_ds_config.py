"""The DeepSpeed configuration is made from the run file, and a policy may only add to it."""

import json
from pathlib import Path
from typing import Any

import pytest
from parity_steps import tiny_run

from megatune.config import BatchShape
from megatune.errors import ConfigError
from megatune.plan.ds_config import make_ds_config, read_policy

POLICIES = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
BATCH = BatchShape(micro=2, accumulation=3, global_sequences=12)


def test_a_value_given_twice_must_agree() -> None:
    run = tiny_run("model", precision="bf16")
    with pytest.raises(ConfigError, match=r"gradient_clipping is 5.0 in the policy file and 1.0 by the run"):
        make_ds_config(run, BATCH, {"gradient_clipping": 5.0})
    assert make_ds_config(run, BATCH, {"gradient_clipping": 1.0})["gradient_clipping"] == 1.0


def test_auto_in_a_policy_means_the_run_files_value() -> None:
    policy = {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": "auto"}}
    merged = make_ds_config(tiny_run("model"), BATCH, policy)
    assert merged["train_micro_batch_size_per_gpu"] == 2
    assert merged["zero_optimization"]["stage"] == 3


def test_low_precision_adds_gradients_in_fp32() -> None:
    for precision in ("bf16", "fp16"):
        merged = make_ds_config(tiny_run("model", precision=precision), BATCH)
        assert merged[precision]["enabled"]
        assert merged["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "data_types" not in make_ds_config(tiny_run("model", precision="fp32"), BATCH)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"zero_stage": 2}, "Set parallel.zero_stage=3"), ({"offload": "nvme:/local"}, "not proven yet")],
)
def test_what_no_test_holds_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_ds_config(tiny_run("model", parallel=setting), BATCH)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda path: path.stem)
def test_every_key_of_a_shipped_policy_reaches_deepspeeds_own_configuration(policy: Path) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    merged = make_ds_config(tiny_run("model"), BATCH, read_policy(policy))
    parsed = DeepSpeedZeroConfig(**merged["zero_optimization"]).model_dump(by_alias=True)

    given = json.loads(policy.read_text())["zero_optimization"]
    for key, value in given.items():
        if value != "auto":
            assert parsed[key] == value, key


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_policy_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"policy\.json"):
        read_policy(path)
