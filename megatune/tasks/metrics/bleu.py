"""BLEU, chrF and TER by sacrebleu, with the signatures that make them comparable."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatune.errors import ConfigError
from megatune.tasks.metrics.bootstrap import Numbers, bootstrap
from megatune.tasks.metrics.scripts import num_without_blanks
from megatune.tasks.scores import Interval, Scores

METRICS = frozenset({"bleu", "chrf", "ter"})


_SPLIT_AT_BLANKS = frozenset({"13a", "intl", "none"})
"""Tokenizers of sacrebleu that find words by the blanks between them."""
_DEFAULT = "13a"


def check_tokenizer(name: str) -> None:
    """Raise ConfigError when sacrebleu lacks what it needs for a tokenizer."""
    if name == _DEFAULT:
        return  # nobody waits for the import
    from sacrebleu.metrics.bleu import BLEU

    try:
        BLEU(tokenize=name)
    except (RuntimeError, ImportError):
        extra = name.partition("-")[0]
        raise ConfigError(
            [
                f"evaluate.bleu_tokenizer = {name}, but what it needs is not installed: pip install "
                f"'sacrebleu[{extra}]', or use char, which needs nothing."
            ]
        ) from None


def translation_scores(gold: Sequence[str], answers: Sequence[str], tokenizer: str = _DEFAULT) -> Scores:
    """Corpus scores on sacrebleu's own scale (BLEU and chrF from 0 to 100; TER 0 is best).

    sacrebleu's defaults: cased, exponential smoothing. tokenizer: of BLEU, by sacrebleu's name.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    metrics: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    signatures: dict[str, str] = {}
    for name, measure in (("bleu", BLEU(tokenize=tokenizer)), ("chrf", CHRF()), ("ter", TER())):
        plain = measure.corpus_score(list(answers), [list(gold)])
        metrics[name] = float(plain.score)
        signatures[name] = str(measure.get_signature())
        if len(gold) > 1:
            intervals[name] = _interval(measure, gold, answers)
    return Scores(
        metrics=metrics,
        intervals=intervals,
        details={"signatures": signatures},
        notices=_notices(gold, tokenizer),
    )


def _notices(gold: Sequence[str], tokenizer: str) -> tuple[str, ...]:
    unsplit = num_without_blanks(gold) if tokenizer in _SPLIT_AT_BLANKS else 0
    if not unsplit:
        return ()
    return (
        f"BLEU with tokenizer {tokenizer} finds words by the blanks between them, and {unsplit} of {len(gold)} targets "
        "have none: use evaluate.bleu_tokenizer zh (Chinese), ja-mecab (Japanese), ko-mecab (Korean) or char. TER "
        "splits at blanks, too; chrF does not",
    )


def _interval(measure: Any, gold: Sequence[str], answers: Sequence[str]) -> Interval:
    """By our own bootstrap: that of sacrebleu 2.6 fails where some samples score nothing at all."""
    statistics = np.array(measure._extract_corpus_statistics(list(answers), [list(gold)]), dtype=np.float64)

    def scores(sums: Numbers) -> dict[str, Numbers]:
        found = [float(measure._compute_score_from_stats(row).score) for row in sums.tolist()]
        return {"score": np.array(found)}

    return bootstrap(statistics, scores)["score"]
