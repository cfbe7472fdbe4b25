"""ROUGE-1, -2, -L and -Lsum by rouge-score."""

from collections.abc import Sequence

import numpy as np

from megatune.tasks.metrics.bootstrap import Numbers, bootstrap
from megatune.tasks.metrics.scripts import num_without_latin
from megatune.tasks.scores import Scores

_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
METRICS = frozenset(_NAMES)


def rouge_scores(gold: Sequence[str], answers: Sequence[str]) -> Scores:
    """Mean F-measures, from 0 to 1, with the Porter stemmer. Lsum takes each line for a sentence.

    rouge-score reads letters a to z and digits only: other scripts score 0, and a notice says so.
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
        notices=_notices(gold),
    )


def _notices(gold: Sequence[str]) -> tuple[str, ...]:
    unread = num_without_latin(gold)
    if not unread:
        return ()
    return (
        f"ROUGE reads letters a to z and digits alone, and {unread} of {len(gold)} summaries have next to none of "
        "them: they score about 0 whatever is answered. chrF, which data.task: translation scores with source and "
        "target, reads every script",
    )


def _means(sums: Numbers) -> dict[str, Numbers]:
    return {name: sums[:, place] / sums[:, -1] for place, name in enumerate(_NAMES)}
