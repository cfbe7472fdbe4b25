"""BLEU, chrF and TER by sacrebleu, with the signatures that make them comparable."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatune.tasks.metrics.bootstrap import Numbers, bootstrap
from megatune.tasks.scores import Interval, Scores

METRICS = frozenset({"bleu", "chrf", "ter"})


def translation_scores(gold: Sequence[str], answers: Sequence[str]) -> Scores:
    """Corpus scores on sacrebleu's own scale (BLEU and chrF from 0 to 100; TER 0 is best).

    sacrebleu's defaults: cased, tokenizer 13a, exponential smoothing.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    metrics: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    signatures: dict[str, str] = {}
    for name, measure in (("bleu", BLEU()), ("chrf", CHRF()), ("ter", TER())):
        plain = measure.corpus_score(list(answers), [list(gold)])
        metrics[name] = float(plain.score)
        signatures[name] = str(measure.get_signature())
        if len(gold) > 1:
            intervals[name] = _interval(measure, gold, answers)
    return Scores(metrics=metrics, intervals=intervals, details={"signatures": signatures})


def _interval(measure: Any, gold: Sequence[str], answers: Sequence[str]) -> Interval:
    """By our own bootstrap: that of sacrebleu 2.6 fails where some samples score nothing at all."""
    statistics = np.array(measure._extract_corpus_statistics(list(answers), [list(gold)]), dtype=np.float64)

    def scores(sums: Numbers) -> dict[str, Numbers]:
        found = [float(measure._compute_score_from_stats(row).score) for row in sums.tolist()]
        return {"score": np.array(found)}

    return bootstrap(statistics, scores)["score"]
