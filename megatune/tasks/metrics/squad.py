"""Exact match and token F1 of short answers, as the SQuAD 1.1 and 2.0 evaluation scripts define them."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from megatune.tasks.metrics.bootstrap import Numbers, bootstrap
from megatune.tasks.scores import Scores

METRICS = frozenset({"exact_match", "f1"})
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """Lower case without punctuation, articles and blanks around words.

    >>> normalised("The  Answer, is: 42!")
    'answer is 42'
    """
    without_articles = re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(_PUNCTUATION))
    return " ".join(without_articles.split())


def exact_match(gold: str, answer: str) -> float:
    """1 for equal answers, else 0."""
    return float(normalised(gold) == normalised(answer))


def token_f1(gold: str, answer: str) -> float:
    """F1 of the words that both have; where one is empty, 1 if the other is too, else 0."""
    wanted, given = normalised(gold).split(), normalised(answer).split()
    if not wanted or not given:
        return float(wanted == given)
    same = sum((Counter(wanted) & Counter(given)).values())
    return 2 * same / (len(wanted) + len(given))


def squad_scores(gold: Sequence[list[str]], answers: Sequence[str]) -> Scores:
    """The best of the accepted answers counts; a row without any accepts only the empty answer."""
    rows = []
    for accepted, answer in zip(gold, answers, strict=True):
        among = [one for one in accepted if normalised(one)] or [""]
        rows.append([max(rule(one, answer) for one in among) for rule in (exact_match, token_f1)])
    statistics = np.concatenate([np.array(rows).reshape(-1, 2), np.ones((len(rows), 1))], axis=1)
    means = _means(statistics.sum(axis=0, keepdims=True))
    return Scores(
        metrics={name: float(value[0]) for name, value in means.items()},
        intervals=bootstrap(statistics, _means),
    )


def _means(sums: Numbers) -> dict[str, Numbers]:
    return {"exact_match": sums[:, 0] / sums[:, 2], "f1": sums[:, 1] / sums[:, 2]}
