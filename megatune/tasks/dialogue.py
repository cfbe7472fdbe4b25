"""Task `dialogue`: conversations, written by the chat template of the model."""

from collections.abc import Mapping

from megatune.tasks import completion
from megatune.tasks.chat import Message, assistant_segments, read_messages, whole_conversation
from megatune.tasks.columns import RowError, choose_form, text_of
from megatune.tasks.options import DEFAULTS, TaskOptions
from megatune.tasks.segments import RenderChat, Segment
from megatune.tasks.task import Task

FORMS = (("messages",), completion.FORM)


def segments(
    row: Mapping[str, object],
    *,
    columns: Mapping[str, str],
    completion_only: bool,
    render_chat: RenderChat | None,
    options: TaskOptions = DEFAULTS,  # noqa: ARG001  (all tasks are called alike)
) -> list[Segment]:
    """A conversation, or prompt + completion as one exchange of user and assistant.

    Without a chat template a prompt and its completion are plain text, and `messages` are refused.
    """
    values = choose_form(row, FORMS, columns)
    if "messages" not in values and render_chat is None:
        return completion.completion_segments(values, completion_only=completion_only)
    messages = _messages(values)
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        return []
    if render_chat is None:
        raise RowError(
            "has messages, but this tokenizer has no chat template to write them with. Use the "
            "tokenizer of an instruct model (model.tokenizer), or give prompt and completion columns"
        )
    if completion_only:
        return assistant_segments(messages, render_chat)
    return whole_conversation(messages, render_chat)


def _messages(values: Mapping[str, object]) -> list[Message]:
    if "messages" in values:
        return read_messages(values["messages"])
    return [
        {"role": "user", "content": text_of(values["prompt"], "prompt")},
        {"role": "assistant", "content": text_of(values["completion"], "completion")},
    ]


TASK = Task(name="dialogue", forms=FORMS, segments=segments)
