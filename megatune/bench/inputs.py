"""What a case trains on, written to disk: a model's shape, made-up rows, and a run file."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from megatune.bench.suite import SUITES, Work
from megatune.errors import ConfigError

MODELS = SUITES.parent / "models"
_SEED = 42
_END = "</s>"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The files of one work."""

    model: Path
    run_file: Path
    """For megatune."""
    documents: Path
    """The same rows prepared one a row, for peers that do not pack; of full rows it is megatune's own set."""


def write_inputs(work: Work, folder: Path) -> Inputs:
    """Write what `work` needs into `folder` and prepare its rows. Loads transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    model = _write_model(work, folder / "model")
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(f"{json.dumps({'text': text})}\n" for text in texts(work, vocabulary_size(model)))
    )
    packed = write_run(work, model, rows, folder / "run.yaml", packing=work.rows == "mixed")
    unpacked = (
        packed if work.rows == "full" else write_run(work, model, rows, folder / "one.yaml", packing=False)
    )
    documents = _prepared(unpacked)
    if packed != unpacked:
        _prepared(packed)  # ranks of several nodes do not wait for one of them to do it
    return Inputs(model=model, run_file=packed, documents=documents)


def texts(work: Work, num_words: int) -> Iterator[str]:
    """Rows of made-up words, enough for every step; the same ones for the same work.

    Lengths of `mixed` rows are drawn from a log-normal distribution with a median of an eighth of
    max_seq_length, cut there: most rows of instruction sets are short, a few fill the context.
    """
    draw = random.Random(_SEED)
    rows_a_step = work.micro_batch * work.ranks
    num_steps = work.warmup_steps + work.steps
    documents_a_row = 6 if work.rows == "mixed" else 1
    for _ in range(rows_a_step * num_steps * documents_a_row):
        length = work.max_seq_length
        if work.rows == "mixed":
            length = min(length, max(4, round(draw.lognormvariate(0.0, 0.9) * work.max_seq_length / 8)))
        yield " ".join(f"w{draw.randrange(2, num_words)}" for _ in range(length - 1))  # one more ends the row


def model_folder(work: Work) -> Path:
    """Where the config.json of the model lies. Raises ConfigError where it is not."""
    source = MODELS / work.model if (MODELS / work.model).is_dir() else Path(work.model)
    if not (source / "config.json").is_file():
        known = ", ".join(sorted(path.name for path in MODELS.glob("*"))) or "none here"
        raise ConfigError(
            [f"work.model = {work.model}: no folder with a config.json. benchmarks/models has {known}."],
            source="the suite",
        )
    return source


def vocabulary_size(model: Path) -> int:
    """The model's, from its config.json."""
    return int(json.loads((model / "config.json").read_text())["vocab_size"])


def _write_model(work: Work, folder: Path) -> Path:
    """The shape with a tokenizer that gives each made-up word one token, and weights drawn once for all programs."""
    source = model_folder(work)
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "config.json", folder / "config.json")
    words = {_END: 0, "<unk>": 1, **{f"w{number}": number for number in range(2, vocabulary_size(folder))}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, pad_token=_END, unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    if work.initialize == "random":
        return folder
    torch.manual_seed(_SEED)
    AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder), dtype=torch.bfloat16
    ).save_pretrained(folder)
    return folder


def write_run(work: Work, model: Path, rows: Path, path: Path, *, packing: bool) -> Path:
    """The run file that trains on `work`, at `path`."""
    run = {
        "model": {"model_name_or_path": str(model), "initialize": work.initialize},
        "data": {
            "task": "text",
            "train": str(rows),
            "max_seq_length": work.max_seq_length,
            "packing": packing,
        },
        "train": {
            "output_dir": str(path.with_suffix("")),
            "max_steps": work.warmup_steps + work.steps,
            "global_batch_size": work.micro_batch * work.ranks,
            "per_device_train_batch_size": work.micro_batch,
            "learning_rate": work.learning_rate,
            "lr_scheduler_type": "constant",
            "seed": _SEED,
        },
        "precision": work.precision,
        "launch": {"nproc_per_node": work.ranks},
        "checkpoint": {"export_at_end": False, "save_at_end": False, "resume": "none"},
    }
    path.write_text(yaml.safe_dump(run))
    return path


def _prepared(run_file: Path) -> Path:
    from megatune.config import load_run
    from megatune.launch.run_folder import RunFolder
    from megatune.train.inputs import prepare_inputs, prepared_folders

    run = load_run(run_file, []).run
    folder = RunFolder(run.train.output_dir)
    folder.create()
    train = prepared_folders(prepare_inputs(run, folder))["train"]
    return Path(train)
