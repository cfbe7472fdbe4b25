"""Tasks: how a row of the user's data becomes text to read and text to learn, and how answers are scored.

No torch and no transformers here: a task knows text only, and is handed what it needs of a tokenizer.
"""

from megatune.tasks import classification, dialogue, ner, qa, summarization, text, translation
from megatune.tasks.columns import MissingColumnsError, RowError
from megatune.tasks.exchange import Exchange, Gold, question
from megatune.tasks.options import DEFAULTS, FOR_SCORES, TaskOptions
from megatune.tasks.scores import Scores
from megatune.tasks.segments import RenderChat, Segment
from megatune.tasks.task import Answers, Task

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (text, dialogue, classification, ner, qa, summarization, translation)
}
"""By the name that `data.task` gives."""

__all__ = [
    "DEFAULTS",
    "FOR_SCORES",
    "TASKS",
    "Answers",
    "Exchange",
    "Gold",
    "MissingColumnsError",
    "RenderChat",
    "RowError",
    "Scores",
    "Segment",
    "Task",
    "TaskOptions",
    "question",
]
