"""Task `text`: whole texts, or completions of prompts, without a chat template."""

from collections.abc import Mapping

from megatune.tasks import completion
from megatune.tasks.columns import MissingColumnsError, RowError, choose_form, text_of
from megatune.tasks.options import DEFAULTS, TaskOptions
from megatune.tasks.segments import RenderChat, Segment
from megatune.tasks.task import Task

FORMS = (("text",), completion.FORM)


def segments(
    row: Mapping[str, object],
    *,
    columns: Mapping[str, str],
    completion_only: bool,
    render_chat: RenderChat | None,  # noqa: ARG001  (all tasks are called alike)
    options: TaskOptions = DEFAULTS,  # noqa: ARG001
) -> list[Segment]:
    """A `text` is trained on as a whole; of prompt + completion the completion, or both."""
    values = _values(row, columns)
    if "text" not in values:
        return completion.completion_segments(values, completion_only=completion_only)
    text = text_of(values["text"], "text")
    return [Segment(text, is_target=True)] if text.strip() else []


def _values(row: Mapping[str, object], columns: Mapping[str, str]) -> dict[str, object]:
    try:
        return choose_form(row, FORMS, columns)
    except MissingColumnsError as missing:
        if "messages" not in missing.found:
            raise
        raise RowError(f"{missing}. Rows with messages are read by data.task: dialogue") from None


TASK = Task(name="text", forms=FORMS, segments=segments)
