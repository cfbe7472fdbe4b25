"""What a run reads: the model folder, its tokenizer, the prepared splits. No process group is needed."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatune.config import Run
from megatune.data.prepare import prepare
from megatune.data.prepared import PreparedSet
from megatune.data.read import Source
from megatune.data.team import ALONE, Team
from megatune.errors import ConfigError, ModelError
from megatune.launch.run_folder import RunFolder
from megatune.model.source import ModelSource, open_source, resolve_model
from megatune.units import format_count


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything on disk that the ranks open."""

    source: ModelSource
    train: PreparedSet
    validation: PreparedSet | None


def open_model(run: Run) -> ModelSource:
    """The model of the run file, checked against what the run asks of it. Raises ModelError or ConfigError."""
    folder = resolve_model(
        run.model.model_name_or_path,
        revision=run.model.revision,
        weights=run.model.initialize == "pretrained",
    )
    source = open_source(folder, trust_remote_code=run.model.trust_remote_code)
    longest = source.shape.max_positions
    if longest is not None and run.data.max_seq_length > longest:
        raise ConfigError(
            [
                f"data.max_seq_length = {run.data.max_seq_length} is more than the {longest} positions of "
                f"{run.model.model_name_or_path}. Use {longest} or less."
            ]
        )
    return source


def open_tokenizer(run: Run, source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer of the run. Raises ModelError when there is none that transformers can read."""
    folder = source.folder
    if run.model.tokenizer:
        folder = resolve_model(run.model.tokenizer, key="model.tokenizer", weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=run.model.trust_remote_code)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ModelError(
            f"no tokenizer could be read from {folder}: {error} Give one with model.tokenizer."
        ) from error
    # Where the files are missing, transformers gives an empty tokenizer of the model's type.
    if not tokenizer("text", add_special_tokens=False)["input_ids"]:
        raise ModelError(
            f"{folder} holds no tokenizer: what transformers makes of it knows no word. "
            "Give one with model.tokenizer."
        )
    return tokenizer


class RowsProgress:
    """Told how many rows of a split have been read, says so on standard error every few seconds."""

    def __init__(self, split: str, every_s: float = 5.0) -> None:
        self._split, self._every_s = split, every_s
        self._begun = self._said = time.monotonic()

    def __call__(self, num_rows: int) -> None:
        now = time.monotonic()
        if now - self._said < self._every_s:
            return
        self._said = now
        rate = num_rows / (now - self._begun)
        print(
            f"megatune: preparing {self._split}: {format_count(num_rows)} rows, {rate:.0f} a second",
            file=sys.stderr,
            flush=True,
        )


def prepare_inputs(run: Run, folder: RunFolder, team: Team = ALONE) -> Inputs:
    """Tokenise and pack both splits, or find them done. Call it before any process group exists.

    team: processes that share the work, started by mpirun; collective then.
    """
    source = team.each(lambda: open_model(run))
    tokenizer = team.each(lambda: open_tokenizer(run, source))

    def prepared(split: str, rows: Source) -> PreparedSet:
        return prepare(
            rows,
            split_name=split,
            task=run.data.task,
            tokenizer=tokenizer,
            tokenizer_name=run.model.tokenizer or run.model.model_name_or_path,
            max_seq_length=run.data.max_seq_length,
            packing=run.data.packing,
            completion_only=run.data.completion_only_loss,
            seed=run.train.seed,
            folder=folder.prepared,
            vocab_size=source.shape.vocab_size,
            on_rows=RowsProgress(split) if team.rank == 0 else lambda _: None,
            team=team,
        )

    validation = run.data.validation
    return Inputs(
        source=source,
        train=prepared("train", run.data.train),
        validation=prepared("validation", validation) if validation is not None else None,
    )


def prepared_folders(inputs: Inputs) -> tuple[Path, Path | None]:
    """What the first rank tells the others to open."""
    return inputs.train.folder, inputs.validation.folder if inputs.validation else None
