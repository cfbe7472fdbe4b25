"""Rules between sections: each section is right by itself, and together they must make sense."""

import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from megatune.config.document import format_value
from megatune.config.run import Run
from megatune.errors import ConfigError


def layout_problems(run: Run) -> list[str]:
    """The rules between sections that hang on how a run is spread over devices, where `run` breaks them."""
    return [*_offload(run), *_compile(run)]


def check_run(run: Run, *, source: str | None = None) -> None:
    """Raise ConfigError with every rule between sections that `run` breaks.

    Looks at the file system for output_dir, deepspeed and checkpoint.resume, and at nothing else.
    """
    rules = (
        _batch,
        _data,
        _tokenizer,
        layout_problems,
        _precision,
        _optimizer,
        _task,
        _head,
        _evaluation,
        _checkpoints,
        _health,
        _hosts,
        _slurm,
        _output_dir,
        _deepspeed,
    )
    problems = [problem for rule in rules for problem in rule(run)]
    if problems:
        raise ConfigError(problems, source=source)


def check_auto(run: Run, auto: Collection[str], *, source: str | None = None) -> None:
    """Raise ConfigError where a key says `auto` and the run does not hold what it would be chosen by."""
    if run.train.global_batch_size is not None or run.train.tokens_per_step is not None:
        return
    changing = [key for key in ("parallel.tp_size", "train.per_device_train_batch_size") if key in auto]
    if changing:
        raise ConfigError(
            [
                f"{' and '.join(changing)} = auto must not change the batch of a step; give train.global_batch_size "
                "or train.tokens_per_step."
            ],
            source=source,
        )


def _batch(run: Run) -> Iterator[str]:
    keys = ("gradient_accumulation_steps", "global_batch_size", "tokens_per_step")
    given = [f"train.{key}" for key in keys if getattr(run.train, key) is not None]
    if len(given) > 1:
        yield f"{' and '.join(given)} are given, but each decides the others; keep one, set the rest to null."
    tokens, length = run.train.tokens_per_step, run.data.max_seq_length
    if tokens is not None and tokens % length:
        near = [
            format_value(value)
            for value in (tokens // length * length, -(-tokens // length) * length)
            if value
        ]
        yield (
            f"train.tokens_per_step = {tokens} is not a multiple of data.max_seq_length = {length}; "
            f"use {' or '.join(near)}."
        )


def _data(run: Run) -> Iterator[str]:
    data = run.data
    if data.val_size is not None and data.validation is not None:
        yield "data.val_size takes validation rows out of data.train, but data.validation is given too; keep one."
    for name, rows in (("validation", data.validation), ("test", data.test)):
        if rows is not None and rows.weights is not None:
            yield f"data.{name} has weights, but each of its rows counts once in every score; take them out."
    if data.stopping_strategy == "first_exhausted" and data.train.weights is None:
        yield (
            "data.stopping_strategy = first_exhausted is for a mixture with weights: give data.train as a "
            "list of sections, each with a path and a weight, or take it out."
        )
    if data.long_rows == "chunk" and data.task != "text":
        yield f"data.long_rows = chunk divides whole texts, but data.task is {data.task}; use truncate or drop."


def _tokenizer(run: Run) -> Iterator[str]:
    if run.tokenizer is None or not run.tokenizer.is_asked_for:
        return
    if run.tokenizer.train is not None and run.model.tokenizer is not None:
        yield (
            f"tokenizer.train makes a tokenizer, but model.tokenizer = {run.model.tokenizer} gives one; keep one."
        )
    if run.tokenizer.train is not None and run.model.initialize == "pretrained":
        yield (
            "tokenizer.train makes other tokens than those that the weights know; set model.initialize = random, or "
            "add tokens to the model's own with tokenizer.add_tokens."
        )


def _offload(run: Run) -> Iterator[str]:
    offload, stage = run.parallel.offload, run.parallel.zero_stage
    needed = {"none": 0, "optimizer": 1}.get(offload, 3)
    if stage < needed:
        allowed = "none" if stage == 0 else "none or optimizer"
        yield (
            f"parallel.offload = {offload} needs parallel.zero_stage {needed} or higher, but it is {stage}; "
            f"raise the stage, or set the offload to {allowed}."
        )
    if run.parallel.disk_folder is not None and run.train.optimizer not in ("adamw", "adam"):
        yield (
            f"parallel.offload = {offload} and train.optimizer = {run.train.optimizer}: only adamw and adam are "
            "stepped on a disk. Use one of them, or parallel.offload=optimizer."
        )


def _compile(run: Run) -> Iterator[str]:
    if run.model.compile and run.parallel.zero_stage == 3 and not run.parallel.leaf_modules:
        yield (
            "model.compile = true and parallel.leaf_modules = false: ZeRO-3 would gather weights inside the "
            "blocks, where compiled code cannot stop. Set parallel.leaf_modules=true, or model.compile=false."
        )


def _precision(run: Run) -> Iterator[str]:
    kernel = run.model.attn_implementation
    if run.precision == "fp32" and kernel.startswith("flash_attention"):
        yield (
            f"model.attn_implementation = {kernel} computes in bf16 and fp16 only, but precision is fp32; "
            f"use sdpa or eager, or another precision."
        )


def _optimizer(run: Run) -> Iterator[str]:
    if run.train.momentum and run.train.optimizer != "sgd":
        yield (
            f"train.momentum = {run.train.momentum} has an effect with train.optimizer = sgd only, "
            f"but that is {run.train.optimizer}; take it out, or change the optimizer."
        )


_TASKS_OF: dict[str, tuple[str, ...]] = {
    "labels": ("classification", "ner"),
    "multi_label": ("classification",),
    "tag_scheme": ("ner",),
    "source_lang": ("translation",),
    "target_lang": ("translation",),
    "template": ("classification", "ner", "qa", "summarization", "translation"),
    "chat": ("classification", "ner", "qa", "summarization", "translation"),
}
"""Keys of `data` that only some tasks read."""


def _task(run: Run) -> Iterator[str]:
    data = run.data
    for key, tasks in _TASKS_OF.items():
        is_given = getattr(data, key) != type(data).model_fields[key].get_default(call_default_factory=True)
        if is_given and data.task not in tasks:
            yield f"data.{key} is read by data.task {', '.join(tasks)}, but that is {data.task}; take it out."
    if run.evaluate.bleu_tokenizer != "13a" and data.task != "translation":
        yield f"evaluate.bleu_tokenizer is read by data.task translation, but that is {data.task}; take it out."
    twice = sorted({label for label in data.labels if data.labels.count(label) > 1})
    if twice:
        yield f"data.labels names {', '.join(map(repr, twice))} more than once."


_TASKS_WITH_HEADS = ("classification", "ner", "qa")


def _head(run: Run) -> Iterator[str]:
    if run.model.head == "lm":
        if run.train.class_weights != "none":
            yield "train.class_weights is for model.head = classifier; take it out, or change the head."
        return
    if run.data.task not in _TASKS_WITH_HEADS:
        yield (
            f"model.head = classifier is for data.task {', '.join(_TASKS_WITH_HEADS)}, but that is {run.data.task}; "
            "use model.head = lm."
        )
    if "packing" in run.data.model_fields_set and run.data.packing:
        yield "data.packing = true, but model.head = classifier reads one row at a time; take it out."
    if run.data.chat:
        yield "data.chat is for model.head = lm, which writes answers; take it out."
    if run.data.template is not None and run.data.task != "classification":
        yield "data.template is not read by model.head = classifier but for classification; take it out."
    if run.train.class_weights != "none" and run.data.task == "qa":
        yield "train.class_weights is for classes of texts or words, but data.task is qa; take it out."


def _evaluation(run: Run) -> Iterator[str]:
    evaluate, checkpoint = run.evaluate, run.checkpoint
    if run.data.validation is None and run.data.val_size is None:
        for key in ("eval_steps", "early_stopping_patience", "load_best_model_at_end"):
            if getattr(evaluate, key):
                yield f"evaluate.{key} is given, but there are no rows for it; give data.validation or val_size."
        if evaluate.max_eval_rows is not None and run.data.test is None:
            yield "evaluate.max_eval_rows is given, but there are no rows for it; give data.validation or val_size."
    if evaluate.early_stopping_patience is not None and evaluate.eval_steps is None:
        yield "evaluate.early_stopping_patience counts evaluations during training; give evaluate.eval_steps."
    if evaluate.early_stopping_min_delta and evaluate.early_stopping_patience is None:
        yield "evaluate.early_stopping_min_delta is for early stopping; give evaluate.early_stopping_patience."
    if evaluate.load_best_model_at_end:
        every, saved = evaluate.eval_steps, checkpoint.save_steps
        if every is None or saved is None or saved % every:
            yield (
                f"evaluate.load_best_model_at_end needs checkpoints at evaluated steps: checkpoint.save_steps "
                f"({saved}) must be a multiple of evaluate.eval_steps ({every}); give both."
            )
    drawing = {key: type(evaluate).model_fields[key].default for key in ("temperature", "top_k", "top_p")}
    unread = [key for key, default in drawing.items() if getattr(evaluate, key) != default]
    if unread and not evaluate.do_sample:
        keys = ", ".join(f"evaluate.{key}" for key in unread)
        yield f"{keys}: only drawn answers have them; give evaluate.do_sample = true, or take {keys} out."
    if evaluate.do_sample and evaluate.num_beams > 1:
        yield "evaluate.do_sample draws answers and evaluate.num_beams searches for them; use one of them."


def _checkpoints(run: Run) -> Iterator[str]:
    checkpoint = run.checkpoint
    if checkpoint.save_total_limit is not None and checkpoint.save_steps is None:
        yield "checkpoint.save_total_limit limits checkpoints during training; give checkpoint.save_steps."
    if checkpoint.resume not in ("auto", "none"):
        yield from _must_be(
            Path(checkpoint.resume), "checkpoint.resume", folder=True, else_use="auto or none"
        )


def _health(run: Run) -> Iterator[str]:
    health = run.health
    if health.on_spike == "skip" and run.precision == "fp16":
        yield (
            "health.on_spike = skip would lower the loss scale of precision = fp16 with each step left out; use "
            "rollback, warn or stop, or precision=bf16."
        )
    if "rollback" in (health.on_nonfinite, health.on_spike) and run.checkpoint.save_steps is None:
        yield "health rolls back to a checkpoint made during training; give checkpoint.save_steps."
    if health.on_nonfinite != "stop" and run.precision == "fp16":
        yield (
            f"health.on_nonfinite = {health.on_nonfinite} is not for precision = fp16, where overflows are left out "
            "by the loss scale anyway; take it out."
        )


def _hosts(run: Run) -> Iterator[str]:
    launch = run.launch
    if launch.launcher == "ssh":
        if launch.hostfile is None:
            yield "launch.launcher = ssh starts ranks on the hosts of a hostfile; give launch.hostfile."
        return
    for key in ("hostfile", "forward_env"):
        if getattr(launch, key):
            yield (
                f"launch.{key} is for launch.launcher = ssh, but that is {launch.launcher}; take it out, or "
                "change the launcher."
            )


def _slurm(run: Run) -> Iterator[str]:
    if run.slurm is None:
        return
    pairs = (
        ("launch.nodes", run.launch.nodes, "slurm.nodes", run.slurm.nodes),
        ("launch.nproc_per_node", run.launch.nproc_per_node, "slurm.gpus_per_node", run.slurm.gpus_per_node),
    )
    for key, value, slurm_key, slurm_value in pairs:
        is_given = key.partition(".")[2] in run.launch.model_fields_set and value != "auto"
        # Without GPUs (slurm.gpus_per_node = 0) launch.nproc_per_node says how many ranks a node has.
        if is_given and slurm_value and value != slurm_value:
            yield f"{key} = {value} and {slurm_key} = {slurm_value} differ; for Slurm, keep {slurm_key} only."


def _output_dir(run: Run) -> Iterator[str]:
    sources = {"train": run.data.train, "validation": run.data.validation, "test": run.data.test}
    for name, source in sources.items():
        paths = [Path(path).absolute() for part in source.parts for path in part.paths] if source else []
        if run.train.output_dir.absolute() in paths:
            yield (
                f"train.output_dir = {run.train.output_dir} is the folder of data.{name} as well, where the run's own "
                "files would be read as rows; use another one, which may be below it."
            )
    for path in (run.train.output_dir, *run.train.output_dir.parents):
        kind = _kind(path)
        if kind not in ("a folder", "missing"):
            asked = f"train.output_dir = {run.train.output_dir}"
            yield f"{asked} must be a folder, but {path} is {kind}; use another path."
            return


def _deepspeed(run: Run) -> Iterator[str]:
    if run.deepspeed is not None:
        yield from _must_be(run.deepspeed, "deepspeed", folder=False, else_use="another path")


def _must_be(path: Path, key: str, *, folder: bool, else_use: str) -> Iterator[str]:
    wanted, kind = "a folder" if folder else "a file", _kind(path)
    if kind != wanted:
        yield f"{key} = {path} must be {wanted}, but it is {kind}; use {else_use}."


def _kind(path: Path) -> str:
    """What there is, as it stands in a message; where the system refuses to look, its reason."""
    try:
        # Asked once: another rank may make the folder between two questions.
        return "a folder" if stat.S_ISDIR(path.stat().st_mode) else "a file"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        return f"not accessible ({error.strerror})"
