"""What a run reads: the model folder, its tokenizer, the prepared splits. No process group is needed."""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatune.config import DataSource, Run
from megatune.data.prepare import Preparation, Settings
from megatune.data.prepared import PreparedSet
from megatune.data.progress import SILENT, Spoken
from megatune.data.team import ALONE, Team
from megatune.errors import ConfigError, ModelError
from megatune.launch.run_folder import RunFolder
from megatune.model.source import ModelSource, open_source, resolve_model


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


def prepare_inputs(run: Run, folder: RunFolder, team: Team = ALONE) -> Inputs:
    """Tokenise and pack both splits, or find them done. Call it before any process group exists.

    team: processes that share the work, started by mpirun; collective then.
    """
    source = team.each(lambda: open_model(run))
    tokenizer = team.each(lambda: open_tokenizer(run, source))

    def preparation(split: str, rows: DataSource, val_size: float | None) -> Preparation:
        workers = run.data.preprocessing_num_workers
        return Preparation(
            sources=rows.parts,
            split_name=split,
            settings=_settings(run, rows, val_size),
            tokenizer=tokenizer,
            tokenizer_name=run.model.tokenizer or run.model.model_name_or_path,
            folder=folder.prepared,
            vocab_size=source.shape.vocab_size,
            num_workers=None if workers == "auto" else workers,
            progress=Spoken(split) if team.rank == 0 else SILENT,
            team=team,
        )

    if run.data.val_size is not None:
        train, validation = preparation("train", run.data.train, run.data.val_size).prepare_both()
        return Inputs(source=source, train=train, validation=validation)
    held_out = run.data.validation
    return Inputs(
        source=source,
        train=preparation("train", run.data.train, None).prepare(),
        validation=preparation("validation", held_out, None).prepare() if held_out is not None else None,
    )


def _settings(run: Run, rows: DataSource, val_size: float | None) -> Settings:
    weights = rows.weights
    return Settings(
        task=run.data.task,
        max_seq_length=run.data.max_seq_length,
        packing=run.data.packing,
        completion_only=run.data.completion_only_loss,
        long_rows=run.data.long_rows,
        truncation_side=run.data.truncation_side,
        weights=None if weights is None else tuple(weights),
        no_row_twice=run.data.stopping_strategy == "first_exhausted",
        val_size=val_size,
        seed=run.train.seed,
    )


def prepared_folders(inputs: Inputs) -> tuple[Path, Path | None]:
    """What the first rank tells the others to open."""
    return inputs.train.folder, inputs.validation.folder if inputs.validation else None
