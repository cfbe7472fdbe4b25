"""Task `ner`: words with entity tags; as text, one entity a line."""

from collections.abc import Mapping, Sequence

from megatune.tasks.columns import RowError, choose_form
from megatune.tasks.exchange import Exchange, Gold, write_prompt
from megatune.tasks.metrics.entities import METRICS, entity_scores
from megatune.tasks.options import TaskOptions
from megatune.tasks.scores import Scores
from megatune.tasks.tags import Span, read_spans, write_tags
from megatune.tasks.task import Answers, answered_task

FORMS = (("tokens", "tags"),)
TEMPLATE = "Text: {{ tokens | join(' ') }}\nEntities:"
NONE = "none"
"""What a model writes for a row without an entity."""


def read_words(
    row: Mapping[str, object], columns: Mapping[str, str], options: TaskOptions
) -> tuple[list[str], list[str]]:
    """The words of a row and their tags, checked. Raises RowError."""
    values = choose_form(row, FORMS, columns)
    words, tags = (_texts(values[name], name) for name in FORMS[0])
    if len(words) != len(tags):
        raise RowError(f"has {len(words)} tokens and {len(tags)} tags; each token needs one")
    if not words:
        raise RowError("has no tokens")
    broken = [word for word in words if len(word.split()) != 1]
    if broken:
        raise RowError(f"has the token {broken[0]!r}; a token is one word, without blanks in it")
    known = options.labels
    unknown = [span.kind for span in read_spans(tags, options.tag_scheme) if known and span.kind not in known]
    if unknown:
        raise RowError(
            f"has an entity of type {unknown[0]!r}, which is not among the known ones ({', '.join(known)}). They are "
            "those of the training rows, or data.labels. Correct the tag, or name all types in data.labels"
        )
    return words, tags


def row_kinds(row: Mapping[str, object], columns: Mapping[str, str], options: TaskOptions) -> list[str]:
    """The entity types of a row."""
    _, tags = read_words(row, columns, options)
    return [span.kind for span in read_spans(tags, options.tag_scheme)]


def exchange(row: Mapping[str, object], columns: Mapping[str, str], options: TaskOptions) -> Exchange:
    words, tags = read_words(row, columns, options)
    values = {"tokens": words}
    spans = read_spans(tags, options.tag_scheme)
    lines = [f"{' '.join(words[span.start : span.stop])}: {span.kind}" for span in spans]
    return Exchange(
        prompt=write_prompt(TEMPLATE, values, row, options),
        answer="\n".join(lines) or NONE,
        gold=tags,
        values=values,
    )


def parse(answer: str, asked: Exchange, options: TaskOptions) -> Gold:
    """Tags for the words of the row: each named entity is looked for behind the one before it, then anywhere.

    The first line that is no `words: TYPE` ends the list. What is not in the text is left out.
    """
    words = _texts(asked.values["tokens"], "tokens")
    taken: list[Span] = []
    for line in answer.strip().split("\n"):
        text, colon, kind = line.strip().rpartition(":")
        if not colon:
            break
        span = _find(text.split(), words, taken, kind.strip())
        if span is not None and (not options.labels or span.kind in options.labels):
            taken.append(span)
    return write_tags(sorted(taken), len(words), options.tag_scheme)


def score(gold: list[Gold], answers: list[Gold], options: TaskOptions) -> Scores:
    return entity_scores([list(one) for one in gold], [list(one) for one in answers], options.tag_scheme)


def _find(entity: list[str], words: list[str], taken: Sequence[Span], kind: str) -> Span | None:
    if not entity or not kind:
        return None
    begin = taken[-1].stop if taken else 0
    starts = range(len(words) - len(entity) + 1)
    for start in sorted(starts, key=lambda at: at < begin):
        stop = start + len(entity)
        is_free = all(stop <= span.start or start >= span.stop for span in taken)
        if is_free and words[start:stop] == entity:
            return Span(start, stop, kind)
    return None


def _texts(value: object, name: str) -> list[str]:
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise RowError(f"has {name} that are a {type(value).__name__}; they must be a list of texts")
    odd = [item for item in value if not isinstance(item, str)]
    if odd:
        raise RowError(
            f"has {name} with {odd[0]!r} in the list; each must be text (numbers stand for tags only where their "
            "names are known: write the names)"
        )
    return list(value)


TASK = answered_task(
    "ner",
    FORMS,
    Answers(
        exchange=exchange,
        parse=parse,
        score=score,
        template=TEMPLATE,
        names=frozenset({"tokens"}),
        metrics=METRICS,
        labels_of=row_kinds,
    ),
)
