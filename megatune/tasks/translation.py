"""Task `translation`: a text in two languages."""

from collections.abc import Mapping

from megatune.tasks.columns import RowError, choose_form, text_of
from megatune.tasks.exchange import Exchange, Gold, write_prompt
from megatune.tasks.metrics.bleu import METRICS, translation_scores
from megatune.tasks.options import TaskOptions
from megatune.tasks.scores import Scores
from megatune.tasks.task import Answers, answered_task

FORMS = (("source", "target"), ("translation",))
TEMPLATE = "{{ source_lang or 'Text' }}: {{ source }}\n{{ target_lang or 'Translation' }}:"


def exchange(row: Mapping[str, object], columns: Mapping[str, str], options: TaskOptions) -> Exchange:
    values = choose_form(row, FORMS, columns)
    if "translation" in values:
        values = _pair(values["translation"], options)
    source, target = (text_of(values[name], name) for name in FORMS[0])
    asked = {"source": source}
    prompt = write_prompt(TEMPLATE, asked, row, options)
    return Exchange(prompt=prompt, answer=target.strip(), gold=target.strip(), values=asked)


def parse(answer: str, asked: Exchange, options: TaskOptions) -> Gold:
    """As many lines as the source has."""
    del options
    lines = answer.strip().split("\n")
    return "\n".join(lines[: str(asked.values["source"]).strip().count("\n") + 1]).strip()


def score(gold: list[Gold], answers: list[Gold], options: TaskOptions) -> Scores:
    texts = [str(one) for one in gold], [str(one) for one in answers]
    return translation_scores(*texts, options.bleu_tokenizer)


def _pair(value: object, options: TaskOptions) -> dict[str, object]:
    """`{en: ..., de: ...}`, as data sets of the hub have it."""
    if not isinstance(value, Mapping):
        raise RowError(f"has a translation that is a {type(value).__name__}; it must be {{language: text}}")
    languages = options.source_lang, options.target_lang
    if None in languages or not all(language in value for language in languages):
        raise RowError(
            f"has a translation with {', '.join(map(str, value))}; say which is which with data.source_lang and "
            f"data.target_lang (now {languages[0]} and {languages[1]})"
        )
    return {"source": value[languages[0]], "target": value[languages[1]]}


TASK = answered_task(
    "translation",
    FORMS,
    Answers(
        exchange=exchange,
        parse=parse,
        score=score,
        template=TEMPLATE,
        names=frozenset({"source"}),
        metrics=METRICS,
    ),
)
