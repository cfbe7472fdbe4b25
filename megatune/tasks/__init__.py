"""Tasks: how a row of the user's data becomes text to read and text to learn.

No torch and no transformers here: a task knows text only, and is handed what it needs of a tokenizer.
"""

from megatune.tasks import dialogue, text
from megatune.tasks.columns import MissingColumnsError, RowError
from megatune.tasks.segments import RenderChat, Segment, Task

TASKS: dict[str, Task] = {task.name: task for task in (text.TASK, dialogue.TASK)}
"""By the name that `data.task` gives."""

__all__ = ["TASKS", "MissingColumnsError", "RenderChat", "RowError", "Segment", "Task"]
