"""`megatune evaluate`."""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.text import Text

from megatune.cli.export import model_folder
from megatune.config import Run, load_run, path_override
from megatune.config.document import format_value
from megatune.config.sections import DataSection
from megatune.errors import ConfigError
from megatune.files import write_text_atomic
from megatune.launch.run_folder import RunFolder
from megatune.plan.model_config import read_shape
from megatune.report.metrics import read_metrics
from megatune.report.tables import format_cell, render_table, show
from megatune.units import counted

if TYPE_CHECKING:
    from megatune.evaluate.exam import Result

_COMMAND = "megatune evaluate"
_SPLITS = ("validation", "test")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What the command line says."""

    data: list[str]
    split: str
    task: str | None
    answers: Path | None
    tensor_parallel: int
    num_ranks: int
    as_json: bool


def evaluate_model(model: Path, overrides: list[str], options: EvaluateOptions) -> None:
    """Score a model folder or what a run has trained, and print the scores."""
    _check(model, options)
    with redirect_stdout(sys.stderr):  # libraries greet there; it belongs to the scores alone
        from megatune.train.score import score_model

        with model_folder(model) as folder:
            run = _run_of(model, folder, overrides, options)
            # Of a bare model nobody knows on what it was trained: its labels are those of the rows given.
            labels_from = "train" if _is_run(model) else options.split
            _check_answers(options.answers, run)
            result = score_model(run, options.split, num_ranks=options.num_ranks, labels_from=labels_from)
    show(_answer(result), *_pictures(result), as_json=options.as_json)
    if options.answers is not None:
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in result.answers)
        _write_answers(options.answers, "".join(lines))


def _check_answers(answers: Path | None, run: Run) -> None:
    """Rows are not overwritten, whether they are scored or trained on."""
    if answers is None or not answers.exists():
        return
    sources = (run.data.train, run.data.validation, run.data.test)
    named = [str(path) for source in sources if source for part in source.parts for path in part.paths]
    rows, target = [Path(name).resolve() for name in named], answers.resolve()
    # The file itself, one of a folder, or one that a pattern means.
    if any(target.is_relative_to(path) or fnmatch(str(target), str(path)) for path in rows):
        raise ConfigError([f"--answers {answers} is a file of rows; give another one."], source=_COMMAND)


def _write_answers(path: Path, text: str) -> None:
    """In one stroke, through links; into what is no file (a pipe, /dev/stdout) as it comes."""
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as target:
            target.write(text)
    else:
        write_text_atomic(path.resolve(), text)


def _check(model: Path, options: EvaluateOptions) -> None:
    problems = []
    if options.split not in _SPLITS:
        problems.append(f"--split is {options.split!r}; use one of {', '.join(_SPLITS)}")
    if options.num_ranks % options.tensor_parallel:
        problems.append(f"--tp {options.tensor_parallel} does not divide --nproc {options.num_ranks}")
    if not _is_run(model) and not options.data:
        problems.append(f"{model} is no run folder, whose data would be known; give rows with --data")
    if options.answers is not None and not options.answers.absolute().parent.is_dir():
        problems.append(
            f"--answers {options.answers}: there is no folder {options.answers.absolute().parent}"
        )
    if options.answers is not None and options.answers.is_dir():
        problems.append(f"--answers {options.answers} is a folder; give a file")
    if problems:
        raise ConfigError(problems, source=_COMMAND)


def _is_run(model: Path) -> bool:
    return RunFolder(model).run_file.is_file()


def _run_of(model: Path, folder: Path, overrides: list[str], options: EvaluateOptions) -> Run:
    """The run file of the run, or one made for the rows, with what the command line says on top."""
    given = [f"parallel.tp_size={options.tensor_parallel}", *overrides]
    if options.task is not None:
        given.append(f"data.task={options.task}")
    if options.data:
        given.append(f"data.{options.split}={format_value(options.data)}")
        if options.split == "validation":
            # The rows given are scored, not those taken out of the training rows.
            given.append("data.val_size=null")
    if _is_run(model):
        given.append(path_override("model.model_name_or_path", folder))
        # The folder has the tokenizer that the section made, and the weights that were trained with it.
        given += ["tokenizer=null", "checkpoint.resume=none"]
        run_file = RunFolder(model).run_file
        run = load_run(run_file, given).run
        labels = _trained_labels(RunFolder(model)) or _head_of(folder)[1].get("labels")
        if run.data.labels or not labels:
            return run
        # Whatever has become of the training rows.
        return load_run(run_file, [*given, f"data.labels={format_value(labels)}"]).run
    longest = _longest(folder)  # says so when this is no model folder
    head, task = _head_of(folder)
    sections: dict[str, Any] = {
        "model": {"model_name_or_path": str(folder), "head": head},
        "data": {"train": options.data, "max_seq_length": longest, **task},
        "train": {"output_dir": "unused", "per_device_train_batch_size": 8},
        "precision": "fp32",
    }
    with tempfile.TemporaryDirectory(prefix="megatune-evaluate-") as scratch:
        path = Path(scratch) / "run.yaml"
        path.write_text(yaml.safe_dump(sections), encoding="utf-8")
        return load_run(path, given).run


def _trained_labels(folder: RunFolder) -> list[str]:
    """The labels that a run has learnt to tell apart; none of another task's, nor of a run that never started."""
    entries = read_metrics(folder.metrics) if folder.metrics.is_file() else []
    starts = [entry for entry in entries if entry["event"] == "run"]
    return list(starts[-1].get("labels", ())) if starts else []


def _head_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """The head that a folder's config.json names, and what a classifier says about its task."""
    from megatune.model.heads import kind_named_by

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    task = kind_named_by(config.get("architectures"))
    if task is None:
        return "lm", {"packing": False}
    labels = list((config.get("id2label") or {}).values())
    if task == "ner":
        scheme = "bioes" if any(label.startswith("E-") for label in labels) else "bio"
        kinds = [label[2:] for label in labels if label.startswith("B-")]
        return "classifier", {"task": task, "labels": kinds, "tag_scheme": scheme}
    if task == "qa":
        return "classifier", {"task": task}
    is_multi = config.get("problem_type") == "multi_label_classification"
    return "classifier", {"task": task, "labels": labels, "multi_label": is_multi}


def _longest(folder: Path) -> int:
    """The run file's own maximum, or all positions of a model that has fewer."""
    default: int = DataSection.model_fields["max_seq_length"].default
    return min(default, read_shape(folder).max_positions or default)


def _answer(result: "Result") -> dict[str, Any]:
    return {
        "schema": 1,
        "split": result.split,
        "rows": result.num_rows,
        "loss_rows": result.loss_rows,
        "metrics": {"loss": result.loss, **result.metrics},
        "intervals": result.intervals,
        "target_tokens": result.target_tokens,
        "details": result.details,
        "notices": result.notices,
    }


def _pictures(result: "Result") -> Iterator[Any]:
    rows = [
        {"score": name, "value": value, "95 % of bootstrap samples": _range(result.intervals, name)}
        for name, value in {"loss": result.loss, **result.metrics}.items()
    ]
    yield render_table(rows, title=f"{result.split}: {counted(result.num_rows, 'row')}")
    for name, signature in result.details.get("signatures", {}).items():
        yield Text(f"{name}: {signature}")
    for notice in result.notices:
        yield Text(f"note: {notice}")


def _range(intervals: Mapping[str, tuple[float, float]], name: str) -> str:
    found = intervals.get(name)
    return "" if found is None else f"{format_cell(found[0])} to {format_cell(found[1])}"
