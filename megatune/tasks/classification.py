"""Task `classification`: one label a text, or several (`data.multi_label`)."""

from collections.abc import Mapping

from megatune.tasks.columns import RowError, choose_form, text_of
from megatune.tasks.exchange import Exchange, Gold, write_prompt
from megatune.tasks.metrics.classification import METRICS, multi_label_scores, single_label_scores
from megatune.tasks.options import TaskOptions
from megatune.tasks.scores import Scores
from megatune.tasks.task import Answers, answered_task

SINGLE, MULTI = ("text", "label"), ("text", "labels")
TEMPLATE = "{{ text }}\nLabel:"
NONE = "none"
"""What a model writes for a row without any label."""
_SEPARATOR = ", "


def label_text(value: object) -> str:
    """A label as text: files hold names or numbers. Raises RowError for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(
            f"has a label that is a {type(value).__name__} ({value!r}); it must be a name or a number"
        )
    text = " ".join(str(value).split())
    if not text:
        raise RowError("has an empty label")
    return text


def row_labels(row: Mapping[str, object], columns: Mapping[str, str], options: TaskOptions) -> list[str]:
    """The labels of a row. Raises RowError for one that is not among the known ones."""
    values = _values(row, columns, options)
    found = _labels(values, options)
    unknown = [label for label in found if options.labels and label not in options.labels]
    if unknown:
        known = ", ".join(options.labels[:20]) + (", ..." if len(options.labels) > 20 else "")
        alike = next((one for one in options.labels if one.casefold() == unknown[0].casefold()), None)
        but_case = f"; {alike!r} differs from it in case alone" if alike else ""
        raise RowError(
            f"has the label {unknown[0]!r}, which is not among the {len(options.labels)} known ones "
            f"({known}){but_case}. They are those of the training rows, or data.labels. Correct the "
            "label, or name all of them in data.labels"
        )
    return found


def exchange(row: Mapping[str, object], columns: Mapping[str, str], options: TaskOptions) -> Exchange:
    labels = row_labels(row, columns, options)
    values = {"text": text_of(_values(row, columns, options)["text"], "text")}
    prompt = write_prompt(TEMPLATE, values, row, options)
    if not options.multi_label:
        return Exchange(prompt=prompt, answer=labels[0], gold=labels[0], values=values)
    return Exchange(prompt=prompt, answer=_SEPARATOR.join(labels) or NONE, gold=labels, values=values)


def parse(answer: str, asked: Exchange, options: TaskOptions) -> Gold:
    """The label or labels on the first line; of several only known ones, each once, in the known order."""
    del asked
    line = answer.strip().split("\n")[0].strip()
    if not options.multi_label:
        return line
    named = {part.strip() for part in line.split(_SEPARATOR.strip())}
    return [label for label in options.labels if label in named]


def score(gold: list[Gold], answers: list[Gold], options: TaskOptions) -> Scores:
    if options.multi_label:
        return multi_label_scores([list(one) for one in gold], [list(one) for one in answers], options.labels)
    return single_label_scores([str(one) for one in gold], [str(one) for one in answers], options.labels)


def _values(row: Mapping[str, object], columns: Mapping[str, str], options: TaskOptions) -> dict[str, object]:
    return choose_form(row, (MULTI if options.multi_label else SINGLE,), columns)


def _labels(values: Mapping[str, object], options: TaskOptions) -> list[str]:
    if not options.multi_label:
        return [label_text(values["label"])]
    listed = values["labels"]
    if isinstance(listed, str) or not isinstance(listed, list | tuple):
        raise RowError(f"has labels that are a {type(listed).__name__} ({listed!r}); they must be a list")
    labels = [label_text(label) for label in listed]
    broken = [label for label in labels if _SEPARATOR.strip() in label or label == NONE]
    if broken:
        raise RowError(
            f"has the label {broken[0]!r}; with data.multi_label a label has no comma and is not {NONE!r}"
        )
    return sorted(set(labels))


TASK = answered_task(
    "classification",
    (SINGLE, MULTI),
    Answers(
        exchange=exchange,
        parse=parse,
        score=score,
        template=TEMPLATE,
        names=frozenset({"text"}),
        metrics=METRICS,
        labels_of=row_labels,
    ),
)
