"""The sections of the run file, one frozen model each.

A description is the only documentation of its key: `megatune init` and the JSON schema print it.
"""

import re
from typing import Annotated, Literal

from pydantic import Field, Strict, field_validator

from megatune.config.fields import (
    BlockText,
    ClassWeights,
    Count,
    CountOrZero,
    Flag,
    Metric,
    NonNegative,
    PathText,
    Positive,
    RunPath,
    Section,
    Share,
    Text,
    ValSize,
    Warmup,
    or_auto,
)
from megatune.config.source import DataSource

Task = Literal["text", "dialogue", "classification", "ner", "qa", "summarization", "translation"]

TASK_ROWS: dict[str, str] = {
    "text": "rows with `text`, or with `prompt` and `completion`",
    "dialogue": "rows with `messages`, a list of {role, content}",
    "classification": "rows with `text` and `label`; with multi_label `text` and a list `labels`",
    "ner": "rows with `tokens` and `tags`, lists of equal length (B-PER, I-PER, O)",
    "qa": "rows with `question` and `answer` or a list `answers`, and a `context` if there is one",
    "summarization": "rows with `document` and `summary`",
    "translation": "rows with `source` and `target`, or `translation: {en: ..., de: ...}`",
}
"""What a row of each task holds, in words."""


class ModelSection(Section):
    """The model to start from."""

    model_name_or_path: PathText = Field(
        description="Folder in Hugging Face form, or hub id.", examples=["path/to/model"]
    )
    initialize: Literal["pretrained", "random"] = Field(
        default="pretrained", description="Take the weights, or draw them from config.json (benchmarks)."
    )
    head: Literal["lm", "classifier"] = Field(
        default="lm",
        description="Write answers with the language model, or train a classifier head for classification, ner or qa.",
    )
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        default="auto",
        description="Attention kernel, by its transformers name; auto: sdpa, or eager for models without it.",
    )
    gradient_checkpointing: Flag | Literal["auto"] = Field(
        default="auto",
        description="Recompute activations in backward to save memory; auto: where the plan needs it.",
    )
    compile: Flag = Field(
        default=False,
        description="Compile each transformer block with torch.compile: faster steps after a slower first one.",
    )
    tokenizer: PathText | None = Field(
        default=None,
        description="Folder or hub id of the tokenizer, where it is not the model's.",
        examples=["path/to/tokenizer"],
    )
    revision: Text | None = Field(
        default=None, description="Branch, tag or commit of a hub id.", examples=["main"]
    )
    trust_remote_code: Flag = Field(
        default=False, description="Run Python code that comes with the model. Only for sources you trust."
    )


class DataSection(Section):
    """The rows to train on, and how they become sequences."""

    task: Task = Field(default="text", description="What a row is and which tokens are trained.")
    train: DataSource = Field(
        description="Training rows: path(s), a hub id, or {path, split, columns}.",
        examples=["data/train.jsonl"],
    )
    validation: DataSource | None = Field(
        default=None, description="Held-out rows, in the same forms.", examples=["data/valid.jsonl"]
    )
    val_size: ValSize | None = Field(
        default=None,
        description="Rows taken out of data.train for validation: a share below 1, or a number of rows. Equal rows "
        "are never on both sides.",
        examples=[0.05],
    )
    stopping_strategy: Literal["all_exhausted", "first_exhausted"] = Field(
        default="all_exhausted",
        description="An epoch of a mixture with weights: every row at least once (small sources repeat), or no row "
        "twice (large sources are drawn from).",
    )
    test: DataSource | None = Field(
        default=None,
        description="Rows for the scores before and after training, which decide nothing.",
        examples=["data/test.jsonl"],
    )
    template: BlockText | None = Field(
        default=None,
        description="Prompt of a task's rows in jinja2, in place of the task's own (docs/tasks.md).",
        examples=["{{ text }} Topic:"],
    )
    chat: Flag = Field(
        default=False,
        description="Put a task's prompt and answer through the chat template, as one exchange.",
    )
    labels: list[Text] = Field(
        default_factory=list,
        description="Labels of a classification, or entity types of ner; otherwise those of the training rows.",
        examples=[["positive", "negative"]],
    )
    multi_label: Flag = Field(default=False, description="Rows of a classification have a list of labels.")
    tag_scheme: Literal["bio", "bioes"] = Field(default="bio", description="How the tags of ner are written.")
    source_lang: Text | None = Field(
        default=None, description="Language that a translation starts from.", examples=["en"]
    )
    target_lang: Text | None = Field(
        default=None, description="Language that a translation ends in.", examples=["de"]
    )
    max_seq_length: int = Field(
        default=1024, strict=True, ge=2, le=2**24, description="Tokens in a sequence."
    )
    long_rows: Literal["truncate", "chunk", "drop"] = Field(
        default="truncate",
        description="Rows longer than max_seq_length: cut them, or drop them, or divide whole texts into several.",
    )
    truncation_side: Literal["right", "left"] = Field(
        default="right", description="The end of a long row that is cut off."
    )
    preprocessing_num_workers: Count | Literal["auto"] = Field(
        default="auto", description="Processes that tokenise; auto: one a core, fewer for little data."
    )
    loader_workers: CountOrZero = Field(
        default=0,
        description="Threads of a rank that assemble the rows of as many next steps ahead; 0: when they are needed.",
    )
    packing: Flag = Field(
        default=True, description="Put several rows into one sequence, without attention between them."
    )
    completion_only_loss: Flag = Field(
        default=True, description="Train the answers only, not the prompts before them."
    )


class ProfileSection(Section):
    """Steps whose time is to be explained."""

    steps: Text = Field(
        description="First and last step, counted from 1 as in metrics.jsonl; after the first few, which warm up.",
        examples=["10-12"],
    )

    @field_validator("steps", mode="before")
    @classmethod
    def _one_or_two_numbers(cls, value: object) -> object:
        text = str(value) if type(value) is int else value
        found = re.fullmatch(r"([1-9]\d{0,8})(?:-([1-9]\d{0,8}))?", text) if isinstance(text, str) else None
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise ValueError("a step or two of them, as in 10 or 10-12")
        return text

    def range(self) -> range:
        """The steps, first to last."""
        first, _, last = self.steps.partition("-")
        return range(int(first), int(last or first) + 1)


class TrainSection(Section):
    """How long, how fast, with which optimizer. At most one of gradient_accumulation_steps,
    global_batch_size and tokens_per_step."""

    output_dir: RunPath = Field(
        description="Run folder: checkpoints, metrics, logs, export.", examples=["runs/first"]
    )
    num_train_epochs: Positive = Field(default=3.0, description="Passes over the training rows.")
    max_steps: Count | None = Field(
        default=None, description="Optimizer steps; wins over num_train_epochs.", examples=[1000]
    )
    per_device_train_batch_size: Count = Field(
        default=1,
        description="Sequences of max_seq_length in one micro-batch of one data-parallel rank; auto: as planned.",
        json_schema_extra=or_auto,
    )
    gradient_accumulation_steps: Count | None = Field(
        default=None,
        description="Micro-batches in one optimizer step; 1 where nothing derives it.",
        examples=[4],
    )
    global_batch_size: Count | None = Field(
        default=None, description="Sequences in one optimizer step over all ranks.", examples=[64]
    )
    tokens_per_step: Count | None = Field(
        default=None, description="Tokens in one optimizer step over all ranks.", examples=[65536]
    )
    learning_rate: NonNegative = Field(default=1e-5, description="Peak learning rate, reached after warm-up.")
    lr_scheduler_type: Literal["constant", "linear", "cosine", "range_test"] = Field(
        default="cosine",
        description="Course of the learning rate after warm-up; range_test rises a hundred-thousandfold to it.",
    )
    warmup_steps: Warmup = Field(
        default=0.0, description="Steps of linear warm-up; below 1 it is a share of all steps."
    )
    optimizer: Literal["adamw", "adam", "adagrad", "sgd"] = Field(
        default="adamw", description="Optimizer; adamw decays the weights apart from the gradient."
    )
    weight_decay: NonNegative = Field(
        default=0.0, description="Weight decay; biases and norms have none, except with adagrad."
    )
    adam_beta1: Share = Field(default=0.9, description="Decay of Adam's first moment.")
    adam_beta2: Share = Field(default=0.999, description="Decay of Adam's second moment.")
    adam_epsilon: Positive = Field(default=1e-8, description="Added to Adam's denominator.")
    momentum: Share = Field(default=0.0, description="Momentum of sgd.")
    class_weights: ClassWeights = Field(
        default="none",
        description="Losses of a classifier head: equal, with the same share for every class, or a weight for each "
        "label ({spam: 2.0}; the others weigh 1). With multi_label they weigh the rows that have the label.",
    )
    max_grad_norm: NonNegative = Field(
        default=1.0, description="Gradients are scaled down to this global norm; 0 switches it off."
    )
    chunked_loss: Flag | Literal["auto"] = Field(
        default="auto",
        description="Take the loss some tokens at a time, so that no whole logits exist; auto: where a test on the "
        "model itself shows the same loss.",
    )
    seed: Annotated[int, Strict(), Field(ge=0, lt=2**32)] = Field(
        default=42, description="Decides data order, dropout and random weights."
    )
    profile: ProfileSection | None = Field(
        default=None,
        description="Write a trace of these steps of the first rank (torch.profiler, for chrome://tracing or "
        "Perfetto), and one page that says where their time went.",
        examples=[{"steps": "10-12"}],
    )
    logging_steps: Count = Field(default=1, description="Steps between two lines of the log.")


class EvaluateSection(Section):
    """Evaluation on data.validation, always before the first and after the last step too; on data.test only then."""

    eval_steps: Count | None = Field(
        default=None,
        description="Steps between evaluations; without it only before and after.",
        examples=[100],
    )
    per_device_eval_batch_size: Count | None = Field(
        default=None,
        description="Sequences a rank evaluates at once; otherwise as in training.",
        examples=[4],
    )
    metric_for_best_model: Metric = Field(
        default="loss",
        description="What makes a checkpoint the best one: loss, perplexity, or a metric of the task (docs/tasks.md).",
    )
    greater_is_better: Flag | None = Field(
        default=None,
        description="Whether more of it is better; without it what the metric is known for.",
        examples=[True],
    )
    early_stopping_patience: Count | None = Field(
        default=None, description="Stop after so many evaluations without a better metric.", examples=[3]
    )
    early_stopping_min_delta: NonNegative = Field(
        default=0.0, description="How much better the metric must be to count as better."
    )
    load_best_model_at_end: Flag = Field(
        default=False, description="Score and export the best checkpoint instead of the last."
    )
    max_eval_rows: Count | None = Field(
        default=None, description="Evaluate on the first rows only.", examples=[1000]
    )
    answers: Flag = Field(
        default=True, description="Score the answers to a task's rows; false measures the loss alone."
    )
    bleu_tokenizer: Literal["13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"] = Field(
        default="13a", description="What cuts translations into words for BLEU, by sacrebleu's name."
    )
    max_new_tokens: Count = Field(default=64, description="Longest answer that is written, in tokens.")
    num_beams: Count = Field(default=1, description="Beams of the search for an answer; 1 is greedy.")
    do_sample: Flag = Field(default=False, description="Draw answers instead of taking the likeliest.")
    temperature: Positive = Field(default=1.0, description="Of drawing: below 1 likelier tokens gain.")
    top_k: CountOrZero = Field(default=0, description="Draw among so many likeliest tokens; 0 is all.")
    top_p: Annotated[float, Strict(), Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        default=1.0, description="Draw among the likeliest tokens that together have this probability."
    )
    gather_weights: Literal["auto", "once", "per_token"] = Field(
        default="auto",
        description="Make weights whole once for all answers, or at every token; auto: once where they fit.",
    )


class CheckpointSection(Section):
    """Saving, resuming, and the export at the end."""

    save_steps: Count | None = Field(
        default=None, description="Steps between checkpoints; without it only at the end.", examples=[100]
    )
    save_total_limit: Count | None = Field(
        default=None,
        description="Checkpoints kept; older ones are deleted, the best one never.",
        examples=[3],
    )
    asynchronous: Flag | Literal["auto"] = Field(
        default="auto",
        alias="async",
        description="Write checkpoints behind training, from a copy in host memory; auto: where that memory is there.",
    )
    keep_every: Count | None = Field(
        default=None,
        description="Checkpoints of every so many steps are kept for ever, whatever the limit.",
        examples=[1000],
    )
    on_failure: Literal["stop", "continue"] = Field(
        default="stop",
        description="When the disk does not take a checkpoint: stop, or train on and try again at the next.",
    )
    resume: PathText = Field(
        default="auto", description="auto: go on from output_dir; none: start anew; or a checkpoint's folder."
    )
    allow_change: Flag = Field(
        default=False,
        description="Resume although settings that decide what is learnt differ from the saved ones.",
    )
    export_at_end: Flag = Field(default=True, description="Write a Hugging Face folder after the last step.")
    save_at_end: Flag = Field(
        default=True,
        description="Save at the end and when told to stop; false is for measuring: what was trained is lost.",
    )


class LaunchSection(Section):
    """How the ranks are started."""

    launcher: Literal["auto", "local", "slurm", "mpi", "torchrun", "ssh"] = Field(
        default="auto",
        description="Who starts the ranks; auto joins a launched job and else starts them here.",
    )
    hostfile: RunPath | None = Field(
        default=None,
        description="Hosts for launcher ssh, in DeepSpeed's format: a line `host slots=N` each.",
        examples=["hostfile"],
    )
    forward_env: list[Text] = Field(
        default_factory=list,
        description="Environment variables that launcher ssh hands on, beside NCCL_*, HF_* and their like.",
        examples=[["http_proxy"]],
    )
    nproc_per_node: Count | Literal["auto"] = Field(
        default="auto", description="Ranks on each node; auto: one for each device."
    )
    nodes: Count = Field(default=1, description="Nodes of the run.")
    timeout_s: Positive = Field(
        default=1800.0, description="Seconds a collective waits before the run fails."
    )
    max_restarts: CountOrZero = Field(
        default=0,
        description="Start failed ranks of this machine again from the last checkpoint, so often at most; "
        "each start must have saved something new.",
    )
