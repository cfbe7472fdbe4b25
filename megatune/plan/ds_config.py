"""The DeepSpeed configuration of a run, made from the run file: one source, never edited by hand.

An optional policy file (`deepspeed: ds_configs/...json`) may add keys DeepSpeed knows and the run
file does not. A value that both give must agree; "auto" in the policy means the run file's.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatune.config import BatchShape, Run
from megatune.errors import ConfigError
from megatune.plan.buckets import DISK_GROUP_ELEMENTS, set_sizes

Json = dict[str, Any]


def make_ds_config(
    run: Run,
    batch: BatchShape,
    policy: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Json:
    """The configuration handed to deepspeed.initialize.

    sizes: what bucket sizes are where the policy leaves them open (`sizes_of` the model); DeepSpeed's defaults without.
    Raises ConfigError where the policy contradicts the run, and for what this version cannot prove.
    """
    policy = policy or {}
    unproven = list(_unproven(run))
    if unproven:
        raise ConfigError(unproven)
    merged, problems = _merged(run, batch, policy)
    if problems:
        raise ConfigError(problems, source=str(run.deepspeed or "the DeepSpeed policy"))
    asked = policy.get("zero_optimization", {})
    if isinstance(asked, Mapping):
        merged["zero_optimization"] |= set_sizes(asked, sizes or {})
    if run.parallel.disk_folder is not None:
        merged["zero_optimization"].setdefault("sub_group_size", DISK_GROUP_ELEMENTS)
    # On a GPU it waits for all that is queued, twice a micro-batch; metrics.jsonl has the speed.
    merged.setdefault("timers", {"throughput": {"enabled": False}})
    return merged


def ds_config_problems(run: Run, batch: BatchShape, policy: Mapping[str, Any]) -> list[str]:
    """All for which `make_ds_config` would raise."""
    return [*_unproven(run), *_merged(run, batch, policy)[1]]


def _merged(run: Run, batch: BatchShape, policy: Mapping[str, Any]) -> tuple[Json, list[str]]:
    """The run's configuration with the policy's keys, and what contradicts it there."""
    own = {
        "train_micro_batch_size_per_gpu": batch.micro,
        "gradient_accumulation_steps": batch.accumulation,
        "gradient_clipping": run.train.max_grad_norm,
        "zero_optimization": _zero(run),
        "zero_allow_untested_optimizer": True,  # Adagrad and SGD are proven by our own parity tests
        **_offload_of_others(run),
        **_precision(run),
        "steps_per_print": 10**9,  # metrics.jsonl is the only log of steps
    }
    problems = [*_contradictions(run, policy), *_unfit_for_groups(run, policy)]
    return _merge(own, policy, "", problems), problems


def _offload_of_others(run: Run) -> Json:
    """DeepSpeed has a compiled Adam for host memory, and refuses what it has not: torch steps there as well."""
    is_adam = run.train.optimizer in ("adam", "adamw")
    return {} if is_adam or run.parallel.offload == "none" else {"zero_force_ds_cpu_optimizer": False}


def read_policy(path: Path | None) -> Json:
    """The policy file's content; {} without one. Raises ConfigError when it is missing or not JSON."""
    if path is None:
        return {}
    try:
        policy = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"deepspeed: {path} cannot be read ({error.strerror})."]) from error
    except json.JSONDecodeError as error:
        raise ConfigError([f"deepspeed: {path} is not JSON: {error}."]) from error
    if not isinstance(policy, dict):
        raise ConfigError([f"deepspeed: {path} holds a {type(policy).__name__}, not a JSON object."])
    return policy


def _unproven(run: Run) -> Iterator[str]:
    """Settings of the run file whose results no test holds yet are refused, not tried."""
    if run.parallel.keep_gathered is True and run.parallel.offload != "none":
        yield (
            f"parallel.keep_gathered = true and parallel.offload = {run.parallel.offload}: weights are kept on the "
            "device only without offload. Use parallel.keep_gathered=auto."
        )


def _contradictions(run: Run, policy: Mapping[str, Any]) -> Iterator[str]:
    """What a policy switches on and the run file leaves off: megatune's own part would not follow."""
    for precision in ("bf16", "fp16"):
        section = policy.get(precision)
        if isinstance(section, Mapping) and section.get("enabled") is True and run.precision != precision:
            yield (
                f"{precision}.enabled is true in the policy file, but the run file says precision = "
                f"{run.precision}. Set precision={precision}, or take another policy."
            )
    zero = policy.get("zero_optimization")
    if zero and run.parallel.zero_stage == 0:
        yield (
            "zero_optimization is in the policy file, but parallel.zero_stage is 0, which is plain torch and reads "
            "none of it. Set parallel.zero_stage to 1, 2 or 3, or take the section out of the policy."
        )
    needed = {"offload_optimizer": ("optimizer", "all", "nvme"), "offload_param": ("all",)}
    for key, offloads in needed.items():
        section = zero.get(key) if isinstance(zero, Mapping) else None
        device = section.get("device", "cpu") if isinstance(section, Mapping) else "none"
        if device == "nvme":
            yield (
                f"zero_optimization.{key}.device is nvme in the policy file: DeepSpeed's way to a disk gives wrong "
                "gradients (docs/zero.md). Set parallel.offload=nvme:/path in the run file, and take it out here."
            )
        elif device != "none" and run.parallel.offload.partition(":")[0] not in offloads:
            yield (
                f"zero_optimization.{key} is in the policy file, but the run file says parallel.offload = "
                f"{run.parallel.offload}. Set parallel.offload={offloads[0]}, or take it out of the policy."
            )


def _unfit_for_groups(run: Run, policy: Mapping[str, Any]) -> Iterator[str]:
    """ZeRO++ counts ranks of the whole job where tensor parallelism would need those of its groups (groups.py,
    `_create_zero_param_parallel_group`): neighbours would gather weights that are not theirs."""
    zero = policy.get("zero_optimization")
    if not isinstance(zero, Mapping) or run.parallel.tp_size == 1:
        return
    for key in ("zero_hpz_partition_size", "zero_quantized_gradients"):
        if zero.get(key, "auto") not in ("auto", 1, False):
            yield (
                f"zero_optimization.{key} is in the policy file, and parallel.tp_size is {run.parallel.tp_size}: "
                "DeepSpeed would mix the ranks of tensor-parallel groups. Set parallel.tp_size=1, or take it out."
            )


def _zero(run: Run) -> Json:
    zero: Json = {"stage": run.parallel.zero_stage}
    offload = run.parallel.offload
    if offload != "none":
        # On a local disk too, for DeepSpeed: its tensors are mapped files (engine/disk_states.py).
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if offload == "all":
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return zero


def _precision(run: Run) -> Json:
    if run.precision == "fp32":
        return {}
    # Gradients of micro-batches and ranks are added in fp32: in the low precision the sum would
    # depend on how a step is cut into micro-batches.
    half: Json = (
        {"bf16": {"enabled": True}}
        if run.precision == "bf16"
        else {
            "fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000}
        }
    )
    return {**half, "data_types": {"grad_accum_dtype": "fp32"}}


def _merge(own: Mapping[str, Any], policy: Mapping[str, Any], path: str, problems: list[str]) -> Json:
    merged = dict(own)
    for key, value in policy.items():
        place = f"{path}{key}"
        if value == "auto":
            continue  # ours if the run file has it, else DeepSpeed's default
        if key not in own:
            merged[key] = value
        elif isinstance(own[key], Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(own[key], value, f"{place}.", problems)
        elif own[key] != value:
            problems.append(
                f"{place} is {value!r} in the policy file and {own[key]!r} by the run file. "
                'Give it in one place, or write "auto" in the policy file.'
            )
    return merged
