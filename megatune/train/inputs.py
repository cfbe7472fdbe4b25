"""What a run reads: the model folder, its tokenizer, the prepared splits. No process group is needed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatune.config import DataSource, Run
from megatune.data.labelled import head_labels
from megatune.data.labels import with_labels
from megatune.data.overlaps import find_overlaps
from megatune.data.prepare import Preparation, Settings
from megatune.data.prepared import PreparedSet
from megatune.data.progress import SILENT, Spoken
from megatune.data.questions import Questions, read_questions
from megatune.data.team import ALONE, Team
from megatune.errors import ConfigError
from megatune.evaluate.text_size import PERPLEXITIES
from megatune.launch.run_folder import RunFolder
from megatune.model.heads import HeadSpec, find_class
from megatune.model.source import ModelSource, open_source
from megatune.plan.validity import length_problem
from megatune.tasks import DEFAULTS, TASKS, TaskOptions
from megatune.tasks.metrics.bleu import check_tokenizer
from megatune.tasks.template import check_template
from megatune.train.class_weights import class_weights
from megatune.train.start_model import (
    has_start_model,
    load_tokenizer,
    model_folder,
    own_tokenizer,
    ready_model,
)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything on disk that the ranks open."""

    source: ModelSource
    train: PreparedSet
    validation: PreparedSet | None = None
    test: PreparedSet | None = None
    options: TaskOptions = DEFAULTS
    """What the run file says about its task, with the labels of the training rows."""
    questions: Mapping[str, Questions] = field(default_factory=dict)
    """The rows of held-out splits whose answers are scored, by split."""

    @property
    def splits(self) -> dict[str, PreparedSet]:
        """The prepared sets that there are, by name."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: prepared for name, prepared in found.items() if prepared is not None}


def open_model(run: Run) -> ModelSource:
    """The model of the run file, checked against what the run asks of it. Raises ModelError or ConfigError."""
    source = open_source(model_folder(run), trust_remote_code=run.model.trust_remote_code)
    too_long = length_problem(run, source.shape)
    if too_long:
        raise ConfigError([too_long])
    return source


def open_tokenizer(run: Run, source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer of the run. Raises ModelError when there is none that transformers can read."""
    return load_tokenizer(run, source.folder) if has_start_model(run) else own_tokenizer(run, source.folder)


def task_options(run: Run) -> TaskOptions:
    """What the run file says about its task. Raises ConfigError for a template, metric or tokenizer that it has not."""
    data = run.data
    answers = TASKS[data.task].answers
    _refuse_metric(run, answers.metrics if answers and run.evaluate.answers else frozenset())
    if data.template is not None and answers is not None:
        check_template(data.template, {*answers.names, "labels", "source_lang", "target_lang"})
    check_tokenizer(run.evaluate.bleu_tokenizer)
    return TaskOptions(
        template=data.template,
        labels=tuple(data.labels),
        multi_label=data.multi_label,
        tag_scheme=data.tag_scheme,
        source_lang=data.source_lang,
        target_lang=data.target_lang,
        chat=data.chat,
        bleu_tokenizer=run.evaluate.bleu_tokenizer,
    )


def _refuse_metric(run: Run, of_task: frozenset[str]) -> None:
    of_loss = {"loss"} if run.model.head == "classifier" else {"loss", *PERPLEXITIES}
    asked, known = run.evaluate.metric_for_best_model, sorted(of_loss | of_task)
    if asked not in known:
        raise ConfigError(
            [
                f"evaluate.metric_for_best_model = {asked} is no score of data.task {run.data.task} with model.head "
                f"{run.model.head}. Use one of {', '.join(known)}."
            ]
        )


def prepare_inputs(run: Run, folder: RunFolder, team: Team = ALONE, *, may_make: bool = True) -> Inputs:
    """Tokenise and pack all splits, or find them done. Call it before any process group exists.

    team: processes that share the work, started by mpirun; collective then. may_make: False raises
    NotPreparedError for what is not done.
    """
    team.first(lambda: ready_model(run, may_make=may_make))
    source = team.each(lambda: open_model(run))
    tokenizer = team.each(lambda: open_tokenizer(run, source))
    options = team.first(
        lambda: with_labels(task_options(run), run.data.task, run.data.train.parts, split_name="train")
    )
    splitting = Splitting(
        run, source, tokenizer, options, folder.prepared, team, folder.data_hashes, may_make=may_make
    )
    sets: dict[str, PreparedSet] = {}
    if run.data.val_size is not None:
        train = splitting.preparation("train", run.data.train, run.data.val_size)
        sets["train"], sets["validation"] = train.prepare_both()
    for split in ("train", "validation", "test"):
        rows = source_of(run, split)
        if rows is not None and split not in sets:
            sets[split] = splitting.preparation(split, rows, None).prepare()
    _refuse_best_without_loss(run, sets.get("validation"))
    team.first(lambda: find_overlaps(sets))  # now: no process group waits for it
    asked = team.first(lambda: _questions(run, splitting, sets))
    return Inputs(
        source=with_head(run, source, sets["train"], options),
        train=sets["train"],
        validation=sets.get("validation"),
        test=sets.get("test"),
        options=options,
        questions=asked,
    )


def _refuse_best_without_loss(run: Run, validation: PreparedSet | None) -> None:
    """Raises ConfigError where the best checkpoint is looked for by a loss that no validation row has."""
    evaluate, data = run.evaluate, run.data
    looks = evaluate.load_best_model_at_end or evaluate.early_stopping_patience is not None
    by_loss = evaluate.metric_for_best_model in {"loss", *PERPLEXITIES}
    is_written = run.model.head == "lm" and (data.task != "classification" or data.multi_label)
    if validation is not None and not validation.num_examples and looks and by_loss and is_written:
        raise ConfigError(
            [
                f"evaluate.metric_for_best_model = {evaluate.metric_for_best_model}, but every row of data.validation "
                f"is too long for a loss (data.max_seq_length = {data.max_seq_length}). Use a metric of the answers, "
                "or raise data.max_seq_length."
            ]
        )


@dataclass(frozen=True)
class Splitting:
    """How the run file wants its splits prepared and asked."""

    run: Run
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    options: TaskOptions
    folder: Path
    """For prepared sets."""
    team: Team = ALONE
    hashes: Path | None = None
    """Where to remember the hashes of the data files."""
    may_make: bool = True
    """False refuses what is not prepared."""

    def preparation(self, split: str, rows: DataSource, val_size: float | None) -> Preparation:
        """Of one split, or of two when `val_size` divides it; `rows` may be others than its own."""
        run, workers = self.run, self.run.data.preprocessing_num_workers
        return Preparation(
            sources=rows.parts,
            split_name=split,
            settings=_settings(run, rows, val_size, self.options),
            tokenizer=self.tokenizer,
            tokenizer_name=run.model.tokenizer or run.model.model_name_or_path,
            folder=self.folder,
            hashes=self.hashes,
            vocab_size=self.source.shape.vocab_size,
            num_workers=None if workers == "auto" else workers,
            progress=Spoken(split) if self.team.rank == 0 else SILENT,
            team=self.team,
            may_make=self.may_make,
            may_be_without_loss=split != "train" and self._asks,
        )

    @property
    def _asks(self) -> bool:
        """Whether the rows of held-out splits are answered."""
        return TASKS[self.run.data.task].answers is not None and self.run.evaluate.answers

    def questions(self, split: str, rows: DataSource, among: PreparedSet | None = None) -> Questions | None:
        """The rows of a split whose answers are scored; None for tasks, and runs, without answers.

        among: the prepared set, where the split was taken out of `rows`. Raises DataError, or ConfigError
        where no prompt would fit.
        """
        run = self.run
        if not self._asks:
            return None
        is_lm = run.model.head == "lm"
        return read_questions(
            rows.parts,
            split_name=split,
            section=split if among is None else "train",
            task=run.data.task,
            options=self.options,
            tokenizer=self.tokenizer,
            max_prompt_tokens=room_for_prompts(run, self.source) if is_lm else run.data.max_seq_length,
            max_rows=run.evaluate.max_eval_rows,
            head=run.model.head,
            among=among,
        )


def _settings(run: Run, rows: DataSource, val_size: float | None, options: TaskOptions) -> Settings:
    weights = rows.weights
    return Settings(
        task=run.data.task,
        max_seq_length=run.data.max_seq_length,
        packing=run.packs,
        completion_only=run.data.completion_only_loss,
        long_rows=run.data.long_rows,
        truncation_side=run.data.truncation_side,
        weights=None if weights is None else tuple(weights),
        no_row_twice=run.data.stopping_strategy == "first_exhausted",
        val_size=val_size,
        seed=run.train.seed,
        options=options,
        head=run.model.head,
    )


def _questions(run: Run, splitting: Splitting, sets: Mapping[str, PreparedSet]) -> dict[str, Questions]:
    """The questions of the held-out splits, by split."""
    found: dict[str, Questions] = {}
    for split in ("validation", "test"):
        if split not in sets:
            continue
        own = source_of(run, split)
        asked = (
            splitting.questions(split, run.data.train, sets[split])
            if own is None
            else splitting.questions(split, own)
        )
        if asked is not None:
            found[split] = asked
    return found


def with_head(run: Run, source: ModelSource, prepared: PreparedSet, options: TaskOptions) -> ModelSource:
    """`source` with the head of the run. Raises ModelError where transformers has none for the model.

    prepared: rows made for the head, the training ones where they weigh its classes.
    """
    if run.model.head == "lm":
        return source
    labels = head_labels(run.data.task, options)
    spec = HeadSpec(
        kind=run.data.task,  # type: ignore[arg-type]  # checked with the run file
        labels=labels,
        pad_id=prepared.pad_id,
        multi_label=options.multi_label,
        class_weights=class_weights(run, prepared, labels),
    )
    find_class(spec, source.config)
    return replace(source, head=spec)


def source_of(run: Run, split: str) -> DataSource | None:
    """The rows of a split by the run file; None where it has none."""
    found: DataSource | None = getattr(run.data, split)
    return found


def room_for_prompts(run: Run, source: ModelSource) -> int:
    """Tokens of a prompt that leave room for its answer. Raises ConfigError when there are none."""
    longest = source.shape.max_positions or 2**31
    room = longest - run.evaluate.max_new_tokens
    if room < 1:
        raise ConfigError(
            [
                f"evaluate.max_new_tokens = {run.evaluate.max_new_tokens} leaves no room for a prompt in the {longest} "
                f"positions of {run.model.model_name_or_path}. Use less than {longest}."
            ]
        )
    return room


def prepared_folders(inputs: Inputs) -> dict[str, Path]:
    """What the first rank tells the others to open."""
    return {split: prepared.folder for split, prepared in inputs.splits.items()}


def open_inputs(run: Run, folders: Mapping[str, Path], options: TaskOptions) -> Inputs:
    """The inputs of another rank: what the first one prepared and told. Raises DataError for damaged sets."""
    sets = {split: PreparedSet.open(folder) for split, folder in folders.items()}
    return Inputs(
        source=with_head(run, open_model(run), sets["train"], options),
        train=sets["train"],
        validation=sets.get("validation"),
        test=sets.get("test"),
        options=options,
    )
