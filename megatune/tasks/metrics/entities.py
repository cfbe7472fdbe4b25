"""Entity F1 as CoNLL counts it: an entity is right when its words and its type are. By seqeval, strict."""

import warnings
from collections.abc import Sequence

import numpy as np

from megatune.tasks.metrics.bootstrap import Numbers, bootstrap, f1_of
from megatune.tasks.scores import Scores

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
    counts = [(len(one & other), len(other), len(one)) for one, other in zip(wanted, given, strict=True)]
    return Scores(
        metrics={name: float(value) for name, value in found.items()},
        intervals=bootstrap(np.array(counts, dtype=np.float64).reshape(-1, 3), _micro_f1),
        details={"report": _plain(report), "scheme": scheme, "mode": "strict"},
    )


def _micro_f1(sums: Numbers) -> dict[str, Numbers]:
    return {"f1": f1_of(sums[:, 0], sums[:, 1], sums[:, 2])}


def _sets(rows: list[list[object]]) -> list[set[object]]:
    return [{entity.to_tuple()[1:] for entity in row} for row in rows]  # type: ignore[attr-defined]


def _plain(report: dict[str, dict[str, object]]) -> dict[str, dict[str, float]]:
    """Without numpy's numbers, which JSON does not take."""
    return {
        kind: {name: float(value) for name, value in row.items()}  # type: ignore[arg-type]
        for kind, row in report.items()
    }
