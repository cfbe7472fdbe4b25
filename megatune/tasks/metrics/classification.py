"""Accuracy, precision, recall and F1 of labels, by scikit-learn."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatune.tasks.metrics.bootstrap import Numbers, bootstrap, f1_of, share_of
from megatune.tasks.scores import Scores

_AVERAGES = ("macro", "micro", "weighted")
METRICS = frozenset(
    {"accuracy", "exact_match", "hamming_loss"}
    | {f"{average}_{name}" for average in _AVERAGES for name in ("f1", "precision", "recall")}
)


def single_label_scores(gold: Sequence[str], answers: Sequence[str], labels: Sequence[str]) -> Scores:
    """One label a row. Averages go over the labels that are among `gold` or `answers`, as in scikit-learn.

    `labels`: the order of the confusion matrix; those that appear beside them stand behind.
    """
    from sklearn.metrics import accuracy_score, classification_report, confusion_matrix

    names = [*labels, *sorted({*gold, *answers} - set(labels))]
    found = {"accuracy": float(accuracy_score(gold, answers)), **_averages(gold, answers)}
    return Scores(
        metrics=found,
        intervals=bootstrap(_single_statistics(gold, answers), _single_metrics),
        details={
            "report": classification_report(gold, answers, output_dict=True, zero_division=0),
            "confusion": {
                "labels": names,
                "rows_gold_columns_answer": confusion_matrix(gold, answers, labels=names).tolist(),
            },
        },
    )


def multi_label_scores(
    gold: Sequence[list[str]], answers: Sequence[list[str]], labels: Sequence[str]
) -> Scores:
    """Any number of labels a row. `labels`: all there are; those that appear beside them count too."""
    from sklearn.metrics import accuracy_score, classification_report, hamming_loss

    names = [*labels, *sorted({label for row in (*gold, *answers) for label in row} - set(labels))]
    wanted, given = _indicators(gold, names), _indicators(answers, names)
    found = _averages(wanted, given)
    exact = float(accuracy_score(wanted, given))
    return Scores(
        metrics={**found, "exact_match": exact, "hamming_loss": float(hamming_loss(wanted, given))},
        intervals=bootstrap(_statistics(wanted, given), _multi_metrics),
        details={
            "report": classification_report(
                wanted, given, target_names=names, output_dict=True, zero_division=0
            )
        },
    )


def _averages(gold: Any, answers: Any) -> dict[str, float]:
    from sklearn.metrics import precision_recall_fscore_support

    found: dict[str, float] = {}
    for average in _AVERAGES:
        precision, recall, f1, _ = precision_recall_fscore_support(
            gold, answers, average=average, zero_division=0
        )
        found |= {f"{average}_f1": f1, f"{average}_precision": precision, f"{average}_recall": recall}
    order = [f"{average}_{name}" for name in ("f1", "precision", "recall") for average in _AVERAGES]
    return {name: float(found[name]) for name in order}


def _single_statistics(gold: Sequence[str], answers: Sequence[str]) -> Numbers:
    """Of the labels that appear, as scikit-learn takes them."""
    names = sorted({*gold, *answers})
    return _statistics(*(_indicators([[label] for label in rows], names) for rows in (gold, answers)))


def _statistics(wanted: Any, given: Any) -> Numbers:
    """(rows, 2 + 3 * labels): 1, is it right, then a column a label for right, given, wanted."""
    parts = [np.ones((len(wanted), 1)), _exact(wanted, given), wanted * given, given, wanted]
    return np.concatenate(parts, axis=1).astype(np.float64)


def _single_metrics(sums: Numbers) -> dict[str, Numbers]:
    num_rows, right, *counts = _split(sums)
    return {"accuracy": right / num_rows, **_averaged(*counts)}


def _multi_metrics(sums: Numbers) -> dict[str, Numbers]:
    num_rows, right, hits, given, wanted = _split(sums)
    wrong = (given + wanted - 2 * hits).sum(axis=1)
    return {
        "exact_match": right / num_rows,
        "hamming_loss": wrong / (num_rows * hits.shape[1]),
        **_averaged(hits, given, wanted),
    }


def _averaged(hits: Numbers, given: Numbers, wanted: Numbers) -> dict[str, Numbers]:
    """The averages of `_averages`, from (samples, labels) counts; a label that a sample lacks has 0, as there."""
    by_label = {
        "f1": f1_of(hits, given, wanted),
        "precision": share_of(hits, given),
        "recall": share_of(hits, wanted),
    }
    every = [counts.sum(axis=1) for counts in (hits, given, wanted)]
    overall = {
        "f1": f1_of(*every),
        "precision": share_of(every[0], every[1]),
        "recall": share_of(every[0], every[2]),
    }
    found: dict[str, Numbers] = {}
    for name, values in by_label.items():
        found[f"macro_{name}"] = values.mean(axis=1)
        found[f"micro_{name}"] = overall[name]
        found[f"weighted_{name}"] = share_of((values * wanted).sum(axis=1), every[2])
    return found


def _split(sums: Numbers) -> list[Numbers]:
    """Columns of `_statistics`: rows, right, then a block a kind."""
    width = (sums.shape[1] - 2) // 3
    return [sums[:, 0], sums[:, 1], *(sums[:, 2 + i * width : 2 + (i + 1) * width] for i in range(3))]


def _exact(wanted: Any, given: Any) -> Any:
    return (wanted == given).all(axis=1, keepdims=True)


def _indicators(rows: Sequence[list[str]], names: Sequence[str]) -> Any:
    """(rows, names), 1 where a row has the label."""
    place = {name: number for number, name in enumerate(names)}
    found = np.zeros((len(rows), len(names)), dtype=np.int64)
    for number, row in enumerate(rows):
        found[number, [place[label] for label in row]] = 1
    return found
