"""Entity F1 as CoNLL counts it: an entity is right when its words and its type are. By seqeval, strict."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from megatune.tasks.metrics.bootstrap import Numbers, bootstrap, f1_of, share_of
from megatune.tasks.scores import Scores

Entity = tuple[str, int, int]
METRICS = frozenset(
    {f"{average}{name}" for average in ("", "macro_") for name in ("f1", "precision", "recall")}
    | {"token_accuracy"}
)


def entity_scores(gold: Sequence[list[str]], answers: Sequence[list[str]], scheme: str) -> Scores:
    """gold, answers: tags of each row, equally many. scheme: bio (IOB2) or bioes (IOBES).

    Strict: tags that break the scheme are no entity. Micro averages over all entities.
    """
    from seqeval.metrics import accuracy_score
    from seqeval.metrics import v1 as strict
    from seqeval.scheme import IOB2, IOBES, Entities

    chosen = {"bio": IOB2, "bioes": IOBES}[scheme]
    found: dict[str, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a split without any entity: the scores are 0, and that is said
        has_entities = any(tag != "O" for row in (*gold, *answers) for tag in row)
        for average in ("micro", "macro") if has_entities else ("micro",):
            precision, recall, f1, _ = strict.precision_recall_fscore_support(
                gold, answers, average=average, scheme=chosen, zero_division=0
            )
            prefix = "" if average == "micro" else "macro_"
            found |= {f"{prefix}f1": f1, f"{prefix}precision": precision, f"{prefix}recall": recall}
        report = (
            strict.classification_report(gold, answers, scheme=chosen, output_dict=True, zero_division=0)
            if has_entities
            else {}
        )
    found["token_accuracy"] = accuracy_score(gold, answers)
    wanted, given = (_sets(Entities(rows, chosen).entities) for rows in (gold, answers))
    right = [
        [one == other for one, other in zip(*rows, strict=True)] for rows in zip(gold, answers, strict=True)
    ]
    tokens = [(sum(row), len(row)) for row in right]
    return Scores(
        metrics={name: float(value) for name, value in found.items()},
        intervals=bootstrap(_statistics(wanted, given, tokens), _metrics),
        details={"report": _plain(report), "scheme": scheme, "mode": "strict"},
    )


def _statistics(
    wanted: Sequence[set[Entity]], given: Sequence[set[Entity]], tokens: Sequence[tuple[int, int]]
) -> Numbers:
    """(rows, 2 + 3 * types): right tokens and all, then a column a type for right, given, wanted."""
    kinds = sorted({entity[0] for row in (*wanted, *given) for entity in row})
    rows = []
    for one, other, counts in zip(wanted, given, tokens, strict=True):
        sets = one & other, other, one
        rows.append(
            [*counts, *(sum(entity[0] == kind for entity in found) for found in sets for kind in kinds)]
        )
    return np.array(rows, dtype=np.float64).reshape(-1, 2 + 3 * len(kinds))


def _metrics(sums: Numbers) -> dict[str, Numbers]:
    """Of all entities, and their mean over the types; a type that a sample lacks has 0."""
    width = (sums.shape[1] - 2) // 3
    accuracy = {"token_accuracy": share_of(sums[:, 0], sums[:, 1])}
    if not width:
        return accuracy
    hits, given, wanted = (sums[:, 2 + i * width : 2 + (i + 1) * width] for i in range(3))
    every = [counts.sum(axis=1) for counts in (hits, given, wanted)]
    return {
        "f1": f1_of(*every),
        "precision": share_of(every[0], every[1]),
        "recall": share_of(every[0], every[2]),
        "macro_f1": f1_of(hits, given, wanted).mean(axis=1),
        "macro_precision": share_of(hits, given).mean(axis=1),
        "macro_recall": share_of(hits, wanted).mean(axis=1),
        **accuracy,
    }


def _sets(rows: list[list[Any]]) -> list[set[Entity]]:
    """(type, first, last) of each entity."""
    return [{entity.to_tuple()[1:] for entity in row} for row in rows]


def _plain(report: dict[str, dict[str, object]]) -> dict[str, dict[str, float]]:
    """Without numpy's numbers, which JSON does not take."""
    return {
        kind: {name: float(value) for name, value in row.items()}  # type: ignore[arg-type]
        for kind, row in report.items()
    }
