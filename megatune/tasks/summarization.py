"""Task `summarization`: a document and its summary."""

from collections.abc import Mapping

from megatune.tasks.columns import choose_form, text_of
from megatune.tasks.exchange import Exchange, Gold, write_prompt
from megatune.tasks.metrics.rouge import METRICS, rouge_scores
from megatune.tasks.options import TaskOptions
from megatune.tasks.scores import Scores
from megatune.tasks.task import Answers, answered_task

FORMS = (("document", "summary"),)
TEMPLATE = "{{ document }}\n\nSummary:"


def exchange(row: Mapping[str, object], columns: Mapping[str, str], options: TaskOptions) -> Exchange:
    values = choose_form(row, FORMS, columns)
    document, summary = (text_of(values[name], name) for name in FORMS[0])
    asked = {"document": document}
    prompt = write_prompt(TEMPLATE, asked, row, options)
    return Exchange(prompt=prompt, answer=summary.strip(), gold=summary.strip(), values=asked)


def parse(answer: str, asked: Exchange, options: TaskOptions) -> Gold:
    """All that was written."""
    del asked, options
    return answer.strip()


def score(gold: list[Gold], answers: list[Gold], options: TaskOptions) -> Scores:
    del options
    return rouge_scores([str(one) for one in gold], [str(one) for one in answers])


TASK = answered_task(
    "summarization",
    FORMS,
    Answers(
        exchange=exchange,
        parse=parse,
        score=score,
        template=TEMPLATE,
        names=frozenset({"document"}),
        metrics=METRICS,
    ),
)
