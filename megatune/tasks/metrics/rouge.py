"""ROUGE-1, -2, -L and -Lsum by rouge-score."""

from collections.abc import Sequence

import numpy as np

from megatune.tasks.metrics.bootstrap import Numbers, bootstrap
from megatune.tasks.scores import Scores

_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
METRICS = frozenset(_NAMES)


def rouge_scores(gold: Sequence[str], answers: Sequence[str]) -> Scores:
    """Mean F-measures, from 0 to 1, with the Porter stemmer. Lsum takes each line for a sentence.

    rouge-score reads letters a to z and digits only: other scripts score 0.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(_NAMES), use_stemmer=True)
    rows = []
    for one, answer in zip(gold, answers, strict=True):
        found = scorer.score(one, answer)
        rows.append([found[name].fmeasure for name in _NAMES])
    statistics = np.concatenate([np.array(rows).reshape(-1, len(_NAMES)), np.ones((len(rows), 1))], axis=1)
    means = _means(statistics.sum(axis=0, keepdims=True))
    return Scores(
        metrics={name: float(value[0]) for name, value in means.items()},
        intervals=bootstrap(statistics, _means),
        details={"stemmer": "porter"},
    )


def _means(sums: Numbers) -> dict[str, Numbers]:
    return {name: sums[:, place] / sums[:, -1] for place, name in enumerate(_NAMES)}
