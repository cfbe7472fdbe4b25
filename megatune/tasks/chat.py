"""Which characters of a rendered conversation the assistant wrote.

A chat template is a program: nobody can tell from its output alone where an answer begins. The
conversation is therefore rendered once for each beginning of it, and the difference between two
renderings is the turn. That is exact as long as a longer conversation only adds to the end of a
shorter one; a template that rewrites earlier turns is refused, not guessed at.
"""

from collections.abc import Sequence
from difflib import get_close_matches

from megatune.tasks.columns import RowError
from megatune.tasks.segments import RenderChat, Segment

Message = dict[str, str]
_ROLES = ("system", "user", "assistant", "tool", "developer", "function")
_MEANT = {"human": "user", "gpt": "assistant", "bot": "assistant", "ai": "assistant", "model": "assistant"}
"""Roles of other formats; a template writes them as they are, and their turns would not be trained."""


def read_messages(value: object) -> list[Message]:
    """The messages of a row, each with a role and a content; other keys are left out.

    Raises RowError naming the message at fault.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise RowError("has messages that are not a list of {role, content} with at least one message")
    return [_message(item, number) for number, item in enumerate(value, start=1)]


def whole_conversation(messages: list[Message], render_chat: RenderChat) -> list[Segment]:
    """All of the conversation as one target."""
    return [Segment(render_chat(messages, False), is_target=True, templated=True)]


def assistant_segments(messages: list[Message], render_chat: RenderChat) -> list[Segment]:
    """The conversation up to the last answer; every assistant turn with its end-of-turn is a target.

    Turns after the last answer are left out: no loss would be taken on them, nor after them.
    """
    found: list[Segment] = []
    done = ""
    for index in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
        if index == 0:
            raise RowError("begins with an assistant message; put a user or system message before it")
        asked = render_chat(messages[:index], True)
        answered = render_chat(messages[: index + 1], False)
        found.append(_segment(_added(asked, done, num_messages=index), is_target=False))
        answers = bool(messages[index]["content"].strip())  # to end at once is not to be learned
        found.append(_segment(_added(answered, asked, num_messages=index + 1), is_target=answers))
        done = answered
    return found


def _segment(text: str, *, is_target: bool) -> Segment:
    return Segment(text, is_target=is_target, templated=True)


def _added(longer: str, shorter: str, *, num_messages: int) -> str:
    if longer.startswith(shorter):
        return longer[len(shorter) :]
    raise RowError(
        f"cannot be masked exactly: the chat template of this tokenizer writes the beginning of the "
        f"conversation differently once message {num_messages} is there (a template that drops earlier "
        f"reasoning does so). Give one exchange a row, train on everything with "
        f"data.completion_only_loss: false, or use a template that only appends"
    )


def _message(item: object, number: int) -> Message:
    role = item.get("role") if isinstance(item, dict) else None
    content = item.get("content") if isinstance(item, dict) else None
    if isinstance(role, str) and isinstance(content, str):
        _refuse_misspelled(role, number)
        return {"role": role, "content": content}
    keys = ", ".join(map(str, item)) if isinstance(item, dict) else type(item).__name__
    raise RowError(
        f"has a message {number} whose role or content is not text (found: {keys}); "
        f"each message must be {{role: user|assistant|system, content: text}}"
    )


def _refuse_misspelled(role: str, number: int) -> None:
    """A template may know roles of its own, but not `Assistant`."""
    if role in _ROLES:
        return
    name = role.strip().casefold()
    meant = _MEANT.get(name) or next(iter(get_close_matches(name, _ROLES, n=1, cutoff=0.8)), None)
    if meant is not None:
        raise RowError(
            f"has a message {number} with the role {role!r}. Did you mean {meant!r}? "
            "Only turns of 'assistant' are trained"
        )
