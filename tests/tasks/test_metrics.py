"""Scores are those of the reference libraries on the same answers, and their intervals are what they say."""

import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from seqeval.metrics import accuracy_score as token_accuracy
from seqeval.metrics import classification_report as entity_report
from seqeval.metrics import f1_score as entity_f1
from seqeval.metrics import precision_score as entity_precision
from seqeval.metrics import recall_score as entity_recall
from seqeval.scheme import IOB2, IOBES
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    f1_score,
    hamming_loss,
    precision_score,
    recall_score,
)

from megatune.errors import ConfigError
from megatune.tasks import TASKS, Scores
from megatune.tasks.metrics import classification, entities
from megatune.tasks.metrics.bleu import check_tokenizer, translation_scores
from megatune.tasks.metrics.bootstrap import bootstrap
from megatune.tasks.metrics.classification import multi_label_scores, single_label_scores
from megatune.tasks.metrics.entities import entity_scores
from megatune.tasks.metrics.rouge import rouge_scores
from megatune.tasks.metrics.squad import squad_scores, token_f1
from megatune.tasks.scores import greater_is_better
from megatune.tasks.tags import Span, read_spans, write_tags

LABELS = ["acq", "crude", "earn", "trade"]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "far"]


def drawn(choices: Sequence[str], number: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [draw.choice(choices) for _ in range(number)]


def texts(number: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(number)]


def tag_rows(number: int, scheme: str, seed: int) -> list[list[str]]:
    draw, rows = random.Random(seed), []
    for _ in range(number):
        spans, at = [], 0
        while at < 9:
            start = at + draw.randint(0, 3)
            stop = min(10, start + draw.randint(1, 3))
            if start < stop:
                spans.append(Span(start, stop, draw.choice(["PER", "LOC"])))
            at = stop + draw.randint(0, 1)
        rows.append(write_tags(spans, 10, scheme))
    return rows


AVERAGED = {"f1": f1_score, "precision": precision_score, "recall": recall_score}


def averages(gold: Any, answers: Any) -> dict[str, float]:
    """By scikit-learn, one function a score."""
    return {
        f"{average}_{name}": score(gold, answers, average=average, zero_division=0)
        for average in ("macro", "micro", "weighted")
        for name, score in AVERAGED.items()
    }


def test_label_scores_are_those_of_scikit_learn() -> None:
    gold, answers = drawn(LABELS, 200, 1), drawn(LABELS[:3], 200, 2)

    scores = single_label_scores(gold, answers, LABELS)

    expected = {"accuracy": accuracy_score(gold, answers), **averages(gold, answers)}
    assert scores.metrics == pytest.approx(expected, abs=1e-12)
    assert scores.details["report"] == classification_report(gold, answers, output_dict=True, zero_division=0)
    confusion = scores.details["confusion"]
    assert confusion["labels"] == LABELS
    assert confusion["rows_gold_columns_answer"] == confusion_matrix(gold, answers, labels=LABELS).tolist()
    assert next(iter(scores.metrics)) == "accuracy"


def test_scores_of_several_labels_are_those_of_scikit_learn() -> None:
    draw = random.Random(3)
    gold, answers = ([sorted(draw.sample(LABELS, draw.randint(0, 3))) for _ in range(100)] for _ in range(2))
    binary = [[[label in row for label in LABELS] for row in rows] for rows in (gold, answers)]

    scores = multi_label_scores(gold, answers, LABELS)

    expected = {"exact_match": accuracy_score(*binary), "hamming_loss": hamming_loss(*map(np.array, binary))}
    assert scores.metrics == pytest.approx({**expected, **averages(*binary)}, abs=1e-12)
    report = classification_report(*binary, target_names=LABELS, output_dict=True, zero_division=0)
    assert scores.details["report"] == report


@pytest.mark.parametrize(("scheme", "library"), [("bio", IOB2), ("bioes", IOBES)])
def test_entity_scores_are_those_of_seqeval_in_strict_mode(scheme: str, library: type) -> None:
    gold, answers = tag_rows(40, scheme, 4), tag_rows(40, scheme, 5)
    answers[3] = ["I-PER", *answers[3][1:]]  # breaks both schemes, and counts for nothing

    scores = entity_scores(gold, answers, scheme)

    strict = {"mode": "strict", "scheme": library, "zero_division": 0}
    by_name = {"f1": entity_f1, "precision": entity_precision, "recall": entity_recall}
    expected = {"token_accuracy": token_accuracy(gold, answers)}
    for average, prefix in (("micro", ""), ("macro", "macro_")):
        for name, score in by_name.items():
            expected[f"{prefix}{name}"] = score(gold, answers, average=average, **strict)
    assert scores.metrics == pytest.approx(expected, abs=1e-12)
    assert 0 < scores.metrics["f1"] < 1
    report = entity_report(gold, answers, output_dict=True, **strict)
    assert {kind: pytest.approx(row) for kind, row in scores.details["report"].items()} == report


def several(seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    return [sorted(draw.sample(LABELS, draw.randint(0, 3))) for _ in range(80)]


SCORED: dict[str, Callable[[], Scores]] = {
    "one label": lambda: single_label_scores(drawn(LABELS, 80, 1), drawn(LABELS, 80, 2), LABELS),
    "several labels": lambda: multi_label_scores(several(1), several(2), LABELS),
    "entities": lambda: entity_scores(tag_rows(60, "bio", 4), tag_rows(60, "bio", 5), "bio"),
    "short answers": lambda: squad_scores([[one] for one in texts(60, 1)], texts(30, 1) + texts(30, 2)),
    "summaries": lambda: rouge_scores(texts(60, 6), texts(60, 7)),
    "translations": lambda: translation_scores(texts(30, 8), texts(30, 9)),
}


@pytest.mark.parametrize("scored", SCORED.values(), ids=SCORED)
def test_every_score_of_a_task_has_an_interval_around_it(scored: Callable[[], Scores]) -> None:
    scores = scored()

    assert set(scores.intervals) == set(scores.metrics)
    for name, (low, high) in scores.intervals.items():
        assert low < scores.metrics[name] < high, name


@pytest.mark.parametrize("scored", list(SCORED.values())[:3], ids=list(SCORED)[:3])
def test_what_is_drawn_again_is_the_score_that_the_library_gives(
    scored: Callable[[], Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows once, in place of a thousand draws of them: both ends of an interval are the score itself."""

    def every_row_once(rows: Any, metrics: Any) -> dict[str, tuple[float, float]]:
        return {
            name: (value[0], value[0]) for name, value in metrics(rows.sum(axis=0, keepdims=True)).items()
        }

    for module in (classification, entities):
        monkeypatch.setattr(module, "bootstrap", every_row_once)
    scores = scored()

    assert {name: low for name, (low, _) in scores.intervals.items()} == pytest.approx(
        scores.metrics, abs=1e-12
    )


def test_rows_without_any_entity_score_zero_and_say_so_in_numbers() -> None:
    scores = entity_scores([["O"], ["O", "O"]], [["O"], ["O", "O"]], "bio")

    assert scores.metrics == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "token_accuracy": 1.0}


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_tags_are_read_as_the_spans_they_were_written_from(scheme: str) -> None:
    spans = [Span(0, 1, "PER"), Span(1, 4, "PER"), Span(6, 8, "LOC")]

    assert read_spans(write_tags(spans, 9, scheme), scheme) == spans


def test_short_answers_are_scored_as_by_the_squad_script() -> None:
    """Worked by hand from the rules of the script: case, articles and punctuation do not count."""
    gold = [["Paris", "the city of Paris"], ["4"], ["an old dog"], []]
    answers = ["city of paris!", "four", "old cat", ""]

    scores = squad_scores(gold, answers)

    assert scores.metrics["exact_match"] == pytest.approx(2 / 4)
    assert scores.metrics["f1"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert token_f1("a", "the") == 1.0, "both are empty once articles are gone"


def test_rouge_is_that_of_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    gold, answers = texts(30, 6), texts(30, 7)
    gold[0], answers[0] = gold[0] + "\n" + gold[1], answers[0] + "\n" + answers[1]
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(names, use_stemmer=True)
    expected = [scorer.score(one, other) for one, other in zip(gold, answers, strict=True)]

    scores = rouge_scores(gold, answers)

    means = {name: np.mean([row[name].fmeasure for row in expected]) for name in names}
    assert scores.metrics == pytest.approx(means)


def test_bleu_is_that_of_sacrebleu_and_comes_with_its_signature() -> None:
    import sacrebleu

    gold, answers = texts(30, 8), texts(30, 9)

    scores = translation_scores(gold, answers)

    assert scores.metrics["bleu"] == sacrebleu.corpus_bleu(answers, [gold]).score
    assert scores.metrics["chrf"] == sacrebleu.corpus_chrf(answers, [gold]).score
    assert scores.metrics["ter"] == sacrebleu.corpus_ter(answers, [gold]).score
    assert "tok:13a" in scores.details["signatures"]["bleu"]
    assert scores.intervals["bleu"][0] < scores.metrics["bleu"] < scores.intervals["bleu"][1]


def test_rouge_of_texts_that_it_cannot_read_comes_with_a_notice() -> None:
    latin, cyrillic, mixed = "the cat sat", "собака бежит домой", "модель GPT-2 обучена на ста текстах"

    silent = rouge_scores([latin, "Über die Brücke", "!?"], [latin] * 3)
    told = rouge_scores([latin, cyrillic, mixed], [latin, cyrillic, mixed])

    assert silent.notices == ()
    assert told.metrics["rouge1"] < 1, "of equal texts: the notice is needed"
    assert "2 of 3 summaries have next to none" in told.notices[0]


@pytest.mark.parametrize("tokenizer", ["zh", "char", "intl", "13a"])
def test_the_tokenizer_of_bleu_is_the_one_that_was_asked_for(tokenizer: str) -> None:
    import sacrebleu

    gold, answers = ["我们今天去学校。", "他喜欢猫和狗。"], ["我们明天去学校。", "他喜欢狗和猫。"]

    scores = translation_scores(gold, answers, tokenizer)

    assert scores.metrics["bleu"] == sacrebleu.corpus_bleu(answers, [gold], tokenize=tokenizer).score
    assert f"tok:{tokenizer}" in scores.details["signatures"]["bleu"]
    assert bool(scores.notices) == (tokenizer in ("intl", "13a"))


def test_a_tokenizer_that_is_not_installed_is_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "MeCab", None)
    for name in [name for name in sys.modules if name.startswith("sacrebleu.tokenizers.tokenizer_ja")]:
        monkeypatch.delitem(sys.modules, name)

    with pytest.raises(ConfigError, match=r"pip install 'sacrebleu\[ja\]'.*or use char"):
        check_tokenizer("ja-mecab")


def test_answers_that_score_nothing_have_an_interval_too() -> None:
    scores = translation_scores(["ein Hund", "eine Katze"], ["", "eine Katze lief"])

    low, high = scores.intervals["bleu"]
    assert 0 == low <= scores.metrics["bleu"] <= high


def test_the_interval_of_a_share_is_as_wide_as_the_binomial_one() -> None:
    rows = np.array([[1.0, 1.0]] * 300 + [[0.0, 1.0]] * 100)

    low, high = bootstrap(rows, lambda sums: {"share": sums[:, 0] / sums[:, 1]})["share"]

    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert low == pytest.approx(0.75 - half, abs=0.01)
    assert high == pytest.approx(0.75 + half, abs=0.01)


def test_many_rows_that_are_drawn_in_groups_have_the_same_interval() -> None:
    rows = np.array([[1.0, 1.0]] * 15_000 + [[0.0, 1.0]] * 5_000)

    low, high = bootstrap(rows, lambda sums: {"share": sums[:, 0] / sums[:, 1]})["share"]

    half = 1.96 * (0.75 * 0.25 / 20_000) ** 0.5
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert (high + low) / 2 == pytest.approx(0.75, abs=half / 4)


def test_one_row_has_a_score_and_no_interval() -> None:
    scores = squad_scores([["4"]], ["4"])

    assert (scores.metrics["exact_match"], scores.intervals) == (1.0, {})


def test_of_losses_lower_is_better_and_of_scores_higher() -> None:
    assert [greater_is_better(name) for name in ("f1", "accuracy", "bleu", "rouge1", "exact_match")] == [
        True
    ] * 5
    assert not any(greater_is_better(name) for name in ("loss", "word_perplexity", "ter", "hamming_loss"))


def test_every_task_names_all_its_scores() -> None:
    tags = [["B-PER", "O"]]
    single = single_label_scores(["a"], ["b"], LABELS).metrics
    found = {
        "classification": {**single, **multi_label_scores([["acq"]], [[]], LABELS).metrics},
        "ner": entity_scores(tags, tags, "bio").metrics,
        "qa": squad_scores([["a"]], ["b"]).metrics,
        "summarization": rouge_scores(["a"], ["b"]).metrics,
        "translation": translation_scores(["a"], ["b"]).metrics,
    }
    for name, task in TASKS.items():
        assert (task.answers is None) == (name not in found)
        if task.answers is not None:
            assert task.answers.metrics == set(found[name])
