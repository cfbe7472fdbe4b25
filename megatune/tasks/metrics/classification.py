"""Accuracy, precision, recall and F1 of labels, by scikit-learn."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatune.tasks.metrics.bootstrap import Numbers, bootstrap, f1_of
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
    hits = wanted * given
    statistics = np.concatenate([_exact(wanted, given), hits, given, wanted], axis=1).astype(np.float64)
    return Scores(
        metrics={**found, "exact_match": exact, "hamming_loss": float(hamming_loss(wanted, given))},
        intervals=bootstrap(statistics, _multi_metrics),
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
    """(rows, 1 + 3 * labels): is it right, then a column a label for right, given, wanted."""
    names = sorted({*gold, *answers})
    wanted = _indicators([[label] for label in gold], names)
    given = _indicators([[label] for label in answers], names)
    parts = [_exact(wanted, given), wanted * given, given, wanted]
    return np.concatenate(parts, axis=1).astype(np.float64)


def _single_metrics(sums: Numbers) -> dict[str, Numbers]:
    right, hits, given, wanted = _split(sums)
    num_rows = wanted.sum(axis=1)
    by_label = f1_of(hits, given, wanted)
    return {
        "accuracy": right / num_rows,
        "macro_f1": by_label.mean(axis=1),
        "weighted_f1": (by_label * wanted).sum(axis=1) / num_rows,
    }


def _multi_metrics(sums: Numbers) -> dict[str, Numbers]:
    _, hits, given, wanted = _split(sums)
    return {
        "macro_f1": f1_of(hits, given, wanted).mean(axis=1),
        "micro_f1": f1_of(hits.sum(axis=1), given.sum(axis=1), wanted.sum(axis=1)),
    }


def _split(sums: Numbers) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Columns of `_single_statistics`: right, then a block a kind."""
    width = (sums.shape[1] - 1) // 3
    return sums[:, 0], *(sums[:, 1 + i * width : 1 + (i + 1) * width] for i in range(3))  # type: ignore[return-value]


def _exact(wanted: Any, given: Any) -> Any:
    return (wanted == given).all(axis=1, keepdims=True)


def _indicators(rows: Sequence[list[str]], names: Sequence[str]) -> Any:
    """(rows, names), 1 where a row has the label."""
    place = {name: number for number, name in enumerate(names)}
    found = np.zeros((len(rows), len(names)), dtype=np.int64)
    for number, row in enumerate(rows):
        found[number, [place[label] for label in row]] = 1
    return found
