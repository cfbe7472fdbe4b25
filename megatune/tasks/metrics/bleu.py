"""BLEU, chrF and TER by sacrebleu, with the signatures that make them comparable."""

from collections.abc import Sequence

from megatune.tasks.metrics.bootstrap import NUM_SAMPLES
from megatune.tasks.scores import Interval, Scores

METRICS = frozenset({"bleu", "chrf", "ter"})


def translation_scores(gold: Sequence[str], answers: Sequence[str]) -> Scores:
    """Corpus scores on sacrebleu's own scale (BLEU and chrF from 0 to 100; TER 0 is best).

    sacrebleu's defaults: cased, tokenizer 13a, exponential smoothing. Its own bootstrap makes the
    intervals, as mean plus and minus half of what it reports.
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


def _interval(measure: object, gold: Sequence[str], answers: Sequence[str]) -> Interval:
    found = measure.corpus_score(list(answers), [list(gold)], n_bootstrap=NUM_SAMPLES)  # type: ignore[attr-defined]
    return float(found._mean - found._ci), float(found._mean + found._ci)
