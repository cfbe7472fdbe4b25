"""The DeepSpeed configuration is made from the run file, and a policy may only add to it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from parity_steps import tiny_run

from megatune.config import BatchShape, Run
from megatune.errors import ConfigError
from megatune.plan.buckets import buckets_of, sizes_of
from megatune.plan.ds_config import make_ds_config, read_policy
from megatune.plan.weights import count_model

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


def test_auto_sizes_are_formulas_of_the_model() -> None:
    gpt2 = {
        "model_type": "gpt2",
        "n_layer": 24,
        "n_embd": 1024,
        "n_head": 16,
        "vocab_size": 50257,
        "n_positions": 1024,
    }
    policy = read_policy(POLICIES[0].with_name("zero3_auto.json"))
    zero = make_ds_config(tiny_run("model"), BATCH, policy, sizes_of(count_model(gpt2)))["zero_optimization"]
    block = 12 * 1024**2 + 13 * 1024  # SC21: 12 h^2 (1 + 13 / 12 h)
    assert zero["reduce_bucket_size"] == 2 * block
    assert zero["stage3_prefetch_bucket_size"] == block
    assert zero["stage3_param_persistence_threshold"] == 4 * 1024, "the bias of the feed-forward layer"
    assert buckets_of(policy, count_model(gpt2)).reduce == 2 * block, "and the ledger counts with them"
    unsaid = make_ds_config(tiny_run("model"), BATCH, None, sizes_of(count_model(gpt2)))["zero_optimization"]
    assert unsaid["reduce_bucket_size"] == 2 * block == buckets_of({}, count_model(gpt2)).reduce
    assert "stage3_prefetch_bucket_size" not in unsaid
    small = count_model({**gpt2, "n_layer": 1, "n_embd": 64, "n_head": 4})
    assert sizes_of(small)["reduce_bucket_size"] == 2**24, "tiny messages would wait for the link"
    unknown = make_ds_config(tiny_run("model"), BATCH, policy)["zero_optimization"]
    assert "reduce_bucket_size" not in unknown, "DeepSpeed's own default"
    given = {"zero_optimization": {"reduce_bucket_size": 7}}
    assert (
        make_ds_config(tiny_run("model"), BATCH, given, sizes_of(count_model(gpt2)))["zero_optimization"][
            "reduce_bucket_size"
        ]
        == 7
    )


def test_low_precision_adds_gradients_in_fp32() -> None:
    for precision in ("bf16", "fp16"):
        merged = make_ds_config(tiny_run("model", precision=precision), BATCH)
        assert merged[precision]["enabled"]
        assert merged["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "data_types" not in make_ds_config(tiny_run("model", precision="fp32"), BATCH)


@pytest.mark.parametrize(
    ("policy", "is_timed"), [({}, False), ({"timers": {"throughput": {"enabled": True}}}, True)]
)
def test_deepspeeds_timer_is_off_unless_a_policy_asks_for_it(policy: dict[str, Any], is_timed: bool) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    assert DeepSpeedConfig(make_ds_config(tiny_run("model"), BATCH, policy)).timers_config.enabled is is_timed


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"offload": "optimizer", "keep_gathered": True}, "kept on the device only without offload"),
    ],
)
def test_what_no_test_holds_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_ds_config(tiny_run("model", parallel=setting), BATCH)


def test_a_policy_has_no_place_under_stage_0() -> None:
    run = tiny_run("model", parallel={"zero_stage": 0})
    with pytest.raises(ConfigError, match=r"plain torch.*Set parallel\.zero_stage to 1, 2 or 3"):
        make_ds_config(run, BATCH, {"zero_optimization": {"reduce_bucket_size": 1000}})


def _run_for(policy: Path) -> Run:
    """A run file that the policy is meant for: its precision, its stage and its offload."""
    content = json.loads(policy.read_text())
    zero = content["zero_optimization"]
    offload = "all" if "offload_param" in zero else "optimizer" if "offload_optimizer" in zero else "none"
    precision = next((name for name in ("bf16", "fp16") if name in content), "fp32")
    stage = 3 if zero["stage"] == "auto" else zero["stage"]
    return tiny_run("model", precision=precision, parallel={"offload": offload, "zero_stage": stage})


def _leaves(section: Mapping[str, Any], *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, *above, key)
        else:
            yield (*above, key), value


@pytest.mark.parametrize("policy", POLICIES, ids=lambda path: path.stem)
def test_every_key_of_a_shipped_policy_reaches_the_engines_configuration(policy: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    config = DeepSpeedConfig(make_ds_config(_run_for(policy), BATCH, read_policy(policy)))

    sections = {
        "zero_optimization": config.zero_config.model_dump(by_alias=True),
        "bf16": config.bfloat16_config.model_dump(by_alias=True),
        "fp16": config.float16_config.model_dump(by_alias=True),
    }
    given = list(_leaves(json.loads(policy.read_text())))
    assert len(given) > 1
    for path, value in given:
        reached: Any = sections
        for key in path:
            reached = reached[key]
        if value != "auto":
            assert reached == value, path
    assert config.zero_config.stage == int(policy.stem[4])  # zero1_..., zero2_..., zero3_...


@pytest.mark.parametrize("policy", POLICIES, ids=lambda path: path.stem)
def test_every_key_of_a_shipped_policy_is_explained(policy: Path) -> None:
    text = (policy.parent / "README.md").read_text()
    assert f"## {policy.name}" in text
    section = (
        text.split(f"## {policy.name}")[1].split("\n## ")[0]
        + text.split("## Keys of all")[1].split("\n## ")[0]
    )
    for path, _ in _leaves(json.loads(policy.read_text())):
        assert (
            f"`{'.'.join(path[-2:]) if path[0] != 'zero_optimization' or len(path) > 2 else path[-1]}`"
            in section
        )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zero3_bf16", "Set precision=bf16"),
        ("zero3_fp16", "Set precision=fp16"),
        ("zero3_offload_optimizer", "Set parallel.offload=optimizer"),
        ("zero3_offload_all", "Set parallel.offload=all"),
    ],
)
def test_a_policy_for_another_precision_or_offload_is_refused(name: str, message: str) -> None:
    policy = read_policy(POLICIES[0].with_name(f"{name}.json"))
    with pytest.raises(ConfigError, match=message):
        make_ds_config(tiny_run("model", precision="fp32"), BATCH, policy)


@pytest.mark.parametrize("name", ["zero3_hpz", "zero3_zeropp"])
def test_zero_plus_plus_is_refused_with_tensor_parallelism(name: str) -> None:
    policy = read_policy(POLICIES[0].with_name(f"{name}.json"))
    with pytest.raises(ConfigError, match=r"zero_hpz_partition_size.*parallel\.tp_size=1"):
        make_ds_config(tiny_run("model", tp=2), BATCH, policy)


def test_a_policy_of_another_stage_is_refused() -> None:
    policy = read_policy(POLICIES[0].with_name("zero2_bf16.json"))
    with pytest.raises(ConfigError, match="stage is 2 in the policy file and 3 by the run file"):
        make_ds_config(tiny_run("model", precision="bf16"), BATCH, policy)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_policy_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"policy\.json"):
        read_policy(path)
