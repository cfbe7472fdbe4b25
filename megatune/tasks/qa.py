"""Task `qa`: questions with one or several accepted answers, with or without a text to find them in."""

from collections.abc import Mapping

from megatune.tasks.columns import RowError, choose_form, text_of
from megatune.tasks.exchange import Exchange, Gold, write_prompt
from megatune.tasks.metrics.squad import METRICS, squad_scores
from megatune.tasks.options import TaskOptions
from megatune.tasks.scores import Scores
from megatune.tasks.task import Answers, answered_task

FORMS = (("question", "answers"), ("question", "answer"))
TEMPLATE = "{% if context %}{{ context }}\n{% endif %}Question: {{ question }}\nAnswer:"
NONE = "no answer"
"""What a model writes where a text does not answer the question (SQuAD 2)."""


def accepted_answers(value: object) -> list[str]:
    """A text, a list of texts, or SQuAD's {text: [...]}; each answer once. Raises RowError for anything else."""
    if isinstance(value, Mapping):
        value = value.get("text")
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple):
        raise RowError(f"has answers that are a {type(value).__name__}; give a text or a list of texts")
    texts = [text_of(one, "answer").strip() for one in listed]
    return list(dict.fromkeys(text for text in texts if text))


def read_question(
    row: Mapping[str, object], columns: Mapping[str, str]
) -> tuple[dict[str, object], list[str]]:
    """({question, context}, accepted answers) of a row. Raises RowError."""
    values = choose_form(row, FORMS, columns)
    answers = accepted_answers(values.get("answers", values.get("answer")))
    context = row.get(columns.get("context", "context"))
    asked: dict[str, object] = {
        "question": text_of(values["question"], "question"),
        "context": None if context is None else text_of(context, "context"),
    }
    if not answers and context is None:
        raise RowError("has no answer and no context; only a question about a context may have no answer")
    return asked, answers


def exchange(row: Mapping[str, object], columns: Mapping[str, str], options: TaskOptions) -> Exchange:
    values, answers = read_question(row, columns)
    prompt = write_prompt(TEMPLATE, values, row, options)
    return Exchange(prompt=prompt, answer=answers[0] if answers else NONE, gold=answers, values=values)


def parse(answer: str, asked: Exchange, options: TaskOptions) -> Gold:
    """The first line; nothing when it says that there is no answer."""
    del asked, options
    line = answer.strip().split("\n")[0].strip()
    return "" if line == NONE else line


def score(gold: list[Gold], answers: list[Gold], options: TaskOptions) -> Scores:
    del options
    return squad_scores([list(one) for one in gold], [str(one) for one in answers])


TASK = answered_task(
    "qa",
    FORMS,
    Answers(
        exchange=exchange,
        parse=parse,
        score=score,
        template=TEMPLATE,
        names=frozenset({"question", "context"}),
        metrics=METRICS,
        optional=frozenset({"context"}),
    ),
)
