"""Foreign spellings: what other trainers call our keys and values. Each use is told in a one-line notice.

An alias is read in the section of the key it means, at the top level (where flat files of other tools have
it) and in the further sections named here. Sources: transformers, TRL, axolotl, LLaMA-Factory, litgpt,
DeepSpeed, Megatron, GPT-NeoX, torchtitan, submitit.
"""

from collections.abc import Callable
from dataclasses import dataclass

Convert = Callable[[object], object]


class _Nothing:
    """The type of NOTHING."""


NOTHING = _Nothing()
"""What a conversion returns when the foreign value asks for what happens anyway."""


@dataclass(frozen=True)
class Excludes:
    """What a conversion returns when the foreign value only rules one value of the key out.

    `bf16: false` does not say which precision it is: the key must be given too, and not as `value`.
    """

    value: object


@dataclass(frozen=True)
class Alias:
    """`spelling` means `key`; `convert` turns its value, or raises ValueError with a whole clause."""

    spelling: str
    key: str
    convert: Convert = lambda value: value
    sections: tuple[str, ...] = ()

    def places(self) -> list[str]:
        """Dotted places where the spelling is accepted."""
        own = [self.key.partition(".")[0]] if "." in self.key else []
        return [self.spelling, *(f"{section}.{self.spelling}" for section in (*own, *self.sections))]


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")
    return value


def _inverted(value: object) -> object:
    return not _flag(value)


def _ratio(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError("it must be a share from 0 to below 1; give a number of steps as train.warmup_steps")
    return float(value)


def _precision_flag(name: str) -> Convert:
    return lambda value: name if _flag(value) else Excludes(name)


def _strategy(steps_key: str) -> Convert:
    """Converts `no` and `steps`, the values that the number of steps says by itself."""

    def convert(value: object) -> object:
        if value is False or value == "no":  # YAML reads a bare `no` as false
            return None
        if value == "steps":
            return Excludes(None)
        raise ValueError(
            f"only no and steps are known: counting is in steps here, so set {steps_key} instead"
        )

    return convert


def _resume(value: object) -> object:
    return {True: "auto", False: "none"}[value] if isinstance(value, bool) else value


def _overwrite(value: object) -> object:
    return "none" if _flag(value) else NOTHING


def _named(key: str, *spellings: str, sections: tuple[str, ...] = ()) -> list[Alias]:
    return [Alias(spelling, key, sections=sections) for spelling in spellings]


ALIASES: tuple[Alias, ...] = (
    *_named("model.model_name_or_path", "base_model", "pretrained_model_name_or_path", "model_name"),
    *_named("model.tokenizer", "tokenizer_name", "tokenizer_name_or_path"),
    *_named("model.revision", "model_revision", "revision_of_model"),
    *_named(
        "model.gradient_checkpointing",
        "activation_checkpointing",
        "checkpoint_activations",
        sections=("train",),
    ),
    Alias("disable_gradient_checkpointing", "model.gradient_checkpointing", _inverted, ("train",)),
    *_named("data.train", "train_file", "train_dataset", "dataset_name"),
    *_named("data.validation", "validation_file", "eval_dataset"),
    *_named("data.test", "test_file", "test_dataset"),
    *_named("data.labels", "label_list"),
    *_named(
        "data.max_seq_length",
        "sequence_len",
        "seq_length",
        "seq_len",
        "max_length",
        "cutoff_len",
        "max_seq_len",
    ),
    *_named("data.val_size", "val_set_size"),
    *_named("data.preprocessing_num_workers", "dataset_num_proc", "dataset_processes"),
    *_named("data.loader_workers", "dataloader_num_workers", "num_workers"),
    *_named("data.packing", "sample_packing", "neat_packing"),
    Alias("train_on_inputs", "data.completion_only_loss", _inverted),
    Alias("train_on_prompt", "data.completion_only_loss", _inverted),
    Alias("mask_prompt", "data.completion_only_loss"),
    *_named(
        "train.per_device_train_batch_size",
        "micro_batch_size",
        "local_batch_size",
        "train_micro_batch_size_per_gpu",
    ),
    *_named("train.num_train_epochs", "num_epochs", "epochs"),
    *_named("train.max_steps", "train_iters"),
    *_named("train.learning_rate", "lr"),
    *_named("train.lr_scheduler_type", "lr_scheduler", "lr_decay_style"),
    *_named("train.max_grad_norm", "gradient_clipping", "clip_grad"),
    *_named("train.optimizer", "optim"),
    *_named("train.logging_steps", "log_interval"),
    Alias("warmup_ratio", "train.warmup_steps", _ratio),
    *_named(
        "parallel.tp_size",
        "tensor_parallel_size",
        "model_parallel_size",
        "tensor_model_parallel_size",
        "tensor_parallel_degree",
        "autotp_size",
        "tensor_parallel.autotp_size",
        "tensor_parallel.tp_size",
    ),
    *_named("parallel.zero_stage", "zero_optimization.stage"),
    Alias("bf16", "precision", _precision_flag("bf16"), ("train",)),
    Alias("fp16", "precision", _precision_flag("fp16"), ("train",)),
    *_named("precision", "torch_dtype", "dtype", sections=("model", "train")),
    Alias("evaluation_strategy", "evaluate.eval_steps", _strategy("evaluate.eval_steps"), ("train",)),
    Alias("eval_strategy", "evaluate.eval_steps", _strategy("evaluate.eval_steps"), ("train",)),
    *_named("evaluate.per_device_eval_batch_size", "eval_batch_size"),
    *_named("evaluate.early_stopping_patience", "early_stopping_steps"),
    *_named("evaluate.early_stopping_min_delta", "early_stopping_threshold"),
    *_named("evaluate.max_new_tokens", "generation_max_length"),
    *_named("evaluate.num_beams", "generation_num_beams"),
    *_named("evaluate.max_eval_rows", "max_eval_samples"),
    Alias("save_strategy", "checkpoint.save_steps", _strategy("checkpoint.save_steps"), ("train",)),
    *_named("checkpoint.save_total_limit", "keep_last_n_checkpoints", "keep_latest_k"),
    Alias("resume_from_checkpoint", "checkpoint.resume", _resume, ("train",)),
    Alias("overwrite_output_dir", "checkpoint.resume", _overwrite, ("train",)),
    *_named("launch.nodes", "num_nodes", "nnodes"),
    *_named("launch.nproc_per_node", "num_gpus"),
    *_named("launch.timeout_s", "ddp_timeout", sections=("train",)),
    *_named("slurm.time", "timeout_min", "time_limit"),
)

BY_PLACE: dict[str, Alias] = {place: alias for alias in ALIASES for place in alias.places()}

_DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "bf16-mixed": "bf16",
    "16-mixed": "fp16",
    "32-true": "fp32",
}

VALUES: dict[str, dict[str, str]] = {
    "precision": _DTYPES,
    "train.optimizer": {
        "adamw_torch": "adamw",
        "adamw_torch_fused": "adamw",
        "adamw_hf": "adamw",
    },
    "train.lr_scheduler_type": {"constant_with_warmup": "constant"},
    "evaluate.metric_for_best_model": {"eval_loss": "loss"},
}
"""Foreign values of our keys."""
