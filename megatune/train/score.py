"""Score a model folder on rows, outside of training: in this process, or on ranks that share the rows.

As a program one of those ranks: `python -m megatune.train.score QUESTION.json`.
"""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from megatune.config import Run
from megatune.data.labels import with_labels
from megatune.data.prepared import PreparedSet
from megatune.engine.dtypes import DTYPES
from megatune.engine.inference import InferenceEngine
from megatune.engine.kernels import widens_bf16
from megatune.engine.world import World, own_device, single_world
from megatune.errors import DataError, NotPreparedError
from megatune.evaluate.exam import Exam, Marking, Result, set_exam, take_exam
from megatune.evaluate.reach_check import check_reach
from megatune.launch.ask_ranks import ask_ranks
from megatune.launch.run_folder import RunFolder
from megatune.model.build import build_model
from megatune.model.source import ModelSource
from megatune.tasks import TaskOptions
from megatune.train.evaluating import marking_of
from megatune.train.inputs import Splitting, open_model, open_tokenizer, source_of, task_options, with_head

_MODULE = "megatune.train.score"


def score_model(run: Run, split: str, *, num_ranks: int, labels_from: str = "train") -> Result:
    """The scores of `model.model_name_or_path` on a split of `run`. Raises DataError for unusable rows.

    labels_from: the section of `run` whose rows have all labels that there are: the training rows, where the
    model was trained on some.
    """
    if num_ranks == 1:
        return score_together(run, split, single_world(own_device()), labels_from=labels_from)
    question = {
        "tensor_parallel": run.parallel.tp_size,
        "run": run.model_dump(mode="json", exclude_none=True, by_alias=True),
        "split": split,
        "labels_from": labels_from,
    }
    return Result(**ask_ranks(_MODULE, question, num_ranks=num_ranks))


def score_together(run: Run, split: str, world: World, *, labels_from: str) -> Result:
    """The same, by this rank with those of `world`. Collective: every rank calls it."""
    source = open_model(run)
    with tempfile.TemporaryDirectory(prefix="megatune-score-") as name:
        scratch = Path(name)
        options, exam, folder, weighing = world.first_rank(
            lambda: _set(run, split, source, scratch, labels_from)
        )
        marking = _marking(run, options)
        prepared = PreparedSet.open(folder)
        built = build_model(
            with_head(run, source, PreparedSet.open(weighing), options),
            dtype=DTYPES[run.precision],
            attn_implementation=run.model.attn_implementation,
            group=world.tensor_group,
            widen_bf16=widens_bf16(run.precision, world),
        )
        engine = InferenceEngine(built, world)
        if run.packs:
            check_reach(engine, packed=True)  # documents stay as far apart as in training
        result = take_exam(
            engine,
            exam,
            prepared,
            marking,
            open_tokenizer(run, source) if world.is_first else None,
            micro_batch=marking.rows_at_once,
        )
        world.barrier()  # the first rank's scratch folder is mapped by all
    assert result is not None, "nobody gives up"
    return result


def _set(
    run: Run, split: str, source: ModelSource, scratch: Path, labels_from: str
) -> tuple[TaskOptions, Exam, Path, Path]:
    """First rank: the labels that there are, the exam, the folder of the prepared rows, and that of the rows whose
    labels weigh the classes."""
    is_divided = _is_divided(run, split)
    rows = run.data.train if is_divided else source_of(run, split)
    labelled = source_of(run, labels_from)
    if rows is None or labelled is None:
        raise DataError(_without_rows(run, split))
    tokenizer = open_tokenizer(run, source)
    options = with_labels(task_options(run), run.data.task, labelled.parts, split_name=labels_from)
    splitting = Splitting(run, source, tokenizer, options, scratch)
    prepared = _prepared(splitting, split)
    questions = splitting.questions(split, rows, prepared if is_divided else None)
    exam = set_exam(split, prepared, questions, _marking(run, options), tokenizer)
    weighing = _prepared(splitting, "train") if run.train.class_weights == "balanced" else prepared
    return options, exam, prepared.folder, weighing.folder


def _prepared(splitting: Splitting, split: str) -> PreparedSet:
    """A split as the run has prepared it, where that is what is asked for; else made anew."""
    of_run = RunFolder(splitting.run.train.output_dir).prepared
    try:
        return _prepare(replace(splitting, folder=of_run, may_make=False), split)
    except NotPreparedError:
        return _prepare(splitting, split)


def _prepare(splitting: Splitting, split: str) -> PreparedSet:
    data = splitting.run.data
    if split == "train" or _is_divided(splitting.run, split):
        preparation = splitting.preparation("train", data.train, data.val_size)
        train, *held_out = [preparation.prepare()] if data.val_size is None else preparation.prepare_both()
        return train if split == "train" else held_out[0]
    rows = source_of(splitting.run, split)
    assert rows is not None, "refused before"
    return splitting.preparation(split, rows, None).prepare()


def _is_divided(run: Run, split: str) -> bool:
    """Whether the rows of a split are those that data.val_size takes out of the training rows."""
    return split == "validation" and run.data.validation is None and run.data.val_size is not None


def _without_rows(run: Run, split: str) -> str:
    data = run.data
    others = [
        name
        for name, is_there in (
            ("validation", data.validation is not None or data.val_size is not None),
            ("test", data.test is not None),
        )
        if is_there and name != split
    ]
    other = f", or ask for --split {others[0]}, which the run has" if others else ""
    return f"there are no rows to score: give --data, or data.{split} in the run file{other}."


def _marking(run: Run, options: TaskOptions) -> Marking:
    at_once = run.evaluate.per_device_eval_batch_size or run.train.per_device_train_batch_size
    return marking_of(run, options, at_once)


def _score_as_asked(question: Mapping[str, Any], world: World) -> dict[str, Any]:
    run = Run.model_validate(question["run"])
    return asdict(score_together(run, question["split"], world, labels_from=question["labels_from"]))


if __name__ == "__main__":
    from megatune.engine.asked import answer_as_rank

    sys.exit(answer_as_rank(Path(sys.argv[1]), _score_as_asked))
