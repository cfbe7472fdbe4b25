"""The Hugging Face Trainer with DeepSpeed ZeRO-3, timed by a callback; rows as they come, padded if they differ."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from engines import MAX_GRAD_NORM, Setting, deepspeed_config, without_unused_op
from run_peer import Clock, Spec, summary
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
    training_args,
)

from megatune.data.prepared import PreparedSet
from megatune.data.sampler import epoch_order


class Rows(Dataset[list[int]]):
    """Token ids of the set's documents, in the order megatune trains on its rows."""

    def __init__(self, prepared: PreparedSet, seed: int) -> None:
        self._prepared, self._order = prepared, epoch_order(prepared.num_rows, seed=seed, epoch=0)
        if prepared.num_rows != prepared.num_examples:
            raise SystemExit("the Trainer is given single documents; prepare them with data.packing=false")

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> list[int]:
        (document,) = self._prepared.row(int(self._order[index % len(self._order)]))
        return [int(token) for token in document.input_ids]


def padded(rows: Sequence[list[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Rows as wide as the longest, as transformers' collators for fine-tuning make them."""
    width = max(len(row) for row in rows)
    filler = [[0] * (width - len(row)) for row in rows]
    return {
        "input_ids": torch.tensor(
            [row + [pad_id] * len(rest) for row, rest in zip(rows, filler, strict=True)]
        ),
        "attention_mask": torch.tensor(
            [[1] * len(row) + rest for row, rest in zip(rows, filler, strict=True)]
        ),
        "labels": torch.tensor([row + [-100] * len(rest) for row, rest in zip(rows, filler, strict=True)]),
    }


class OwnRows(Sampler[int]):
    """The rows of this rank, where nobody else divides them."""

    def __init__(self, num_rows: int, micro_batch: int) -> None:
        self._num_rows, self._micro_batch = num_rows, micro_batch

    def __len__(self) -> int:
        return self._num_rows // dist.get_world_size()

    def __iter__(self) -> Iterator[int]:
        at_once = self._micro_batch * dist.get_world_size()
        for start in range(dist.get_rank() * self._micro_batch, self._num_rows, at_once):
            yield from range(start, start + self._micro_batch)


class InOrder(Trainer):
    """The Trainer, but for the order of its rows: the comparison wants the same ones.

    Without a GPU accelerate takes each rank for the only one, though DeepSpeed knows both: all would train on the
    same rows and log their own loss. They are divided here then.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows = train_dataset if train_dataset is not None else self.train_dataset
        if self.args.world_size == dist.get_world_size():
            return SequentialSampler(rows)
        return OwnRows(len(rows), self.args.per_device_train_batch_size)


class Timer(TrainerCallback):
    """Times each optimizer step and keeps its loss."""

    def __init__(self) -> None:
        self.clock, self.losses = Clock(), list[float]()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.clock.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.clock.stop()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def measure(spec: Spec) -> dict[str, Any]:
    """Train with the Trainer as a user would, on rows of the prepared set."""
    prepared, timer = PreparedSet.open(Path(spec.data)), Timer()
    precision = torch.bfloat16 if spec.precision == "bf16" else torch.float32
    without_unused_op()
    allow_bf16_on_a_cpu()
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="trainer-"),
        per_device_train_batch_size=spec.micro_batch,
        max_steps=spec.warmup_steps + spec.steps,
        learning_rate=spec.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=MAX_GRAD_NORM,
        weight_decay=0.0,
        seed=spec.seed,
        bf16=spec.precision == "bf16",
        deepspeed=trainer_config(spec),
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    set_seed(spec.seed)
    trainer = InOrder(
        # transformers takes the precision of the files otherwise, which is bf16: the Trainer would train in that.
        model=AutoModelForCausalLM.from_pretrained(spec.model, dtype=precision),
        args=arguments,
        train_dataset=Rows(prepared, spec.seed),
        data_collator=lambda rows: padded(rows, prepared.pad_id),
        callbacks=[timer],
    )
    trainer.train()
    engine = trainer.model_wrapped
    if type(engine).__name__ != "DeepSpeedEngine" or engine.zero_optimization_stage() != 3:
        raise SystemExit(f"the Trainer dropped DeepSpeed: it trained with {type(engine).__name__}")
    losses = torch.tensor(timer.losses, dtype=torch.float64)
    dist.all_reduce(losses)
    described = f"Trainer, {type(engine).__name__} stage 3, {type(engine.optimizer).__name__}"
    return {
        **summary(spec, timer.clock, (losses / dist.get_world_size()).tolist(), described),
        "tokens": tokens_of(spec, prepared),
    }


def allow_bf16_on_a_cpu() -> None:
    """Let TrainingArguments take bf16 beside DeepSpeed without a GPU.

    It asks for a GPU that knows bf16, or for `use_cpu`, which drops DeepSpeed without a word. Nothing but its check
    reads this answer: the engine behind it runs in bf16 as on a GPU.
    """
    if not torch.cuda.is_available():
        training_args.is_torch_bf16_gpu_available = lambda: True


def tokens_of(spec: Spec, prepared: PreparedSet) -> list[int]:
    """Tokens of the rows of each timed step, padding not counted."""
    rows, at_once = Rows(prepared, spec.seed), spec.micro_batch * dist.get_world_size()
    return [
        sum(len(rows[index]) for index in range(step * at_once, (step + 1) * at_once))
        for step in range(spec.warmup_steps, spec.warmup_steps + spec.steps)
    ]


def trainer_config(spec: Spec) -> dict[str, Any]:
    """DeepSpeed's configuration with "auto" where the Trainer's guide has it."""
    setting = Setting(
        spec.model, spec.precision, spec.learning_rate, spec.seed, torch.device("cpu"), spec.micro_batch
    )
    config = deepspeed_config(setting, 3)
    config["zero_optimization"] |= {
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
    }
    return config
